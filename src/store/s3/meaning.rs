//! From what the SDK, the server or the connection said to a [`StoreErrorKind`]: the one place where S3 codes, HTTP
//! statuses and socket errors are known.

use aws_sdk_s3::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};

use crate::store::{
    StoreErrorKind as Kind,
    error::{chain, chain_text, one_line},
};

/// What an error of the SDK means.
#[derive(Debug)]
pub(super) struct Meaning {
    pub(super) kind: Kind,
    pub(super) detail: String,
    /// The server's code, where it sent one.
    pub(super) code: Option<String>,
    /// A refusal without a code: it does not say whether the object, the bucket or the whole service is meant.
    pub(super) bare: bool,
}

impl Meaning {
    /// The meaning of a failed call.
    pub(super) fn of<E>(error: &SdkError<E, HttpResponse>) -> Meaning
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let plain = |kind, detail| Meaning { kind, detail, code: None, bare: false };
        match error {
            SdkError::ServiceError(answer) => {
                let status = answer.raw().status().as_u16();
                // The SDK makes up a code `NotFound` for a HEAD's 404, which has no body to hold one.
                let code = answer.err().code().filter(|code| *code != "NotFound").map(one_line);
                if status < 300 && code.is_none() {
                    return spoilt(status, error);
                }
                let mut detail = format!("{status} {}", code.as_deref().unwrap_or("without a code"));
                if let Some(message) = answer.err().message().filter(|message| !message.is_empty()) {
                    detail = format!("{detail}: {}", one_line(message));
                }
                Meaning {
                    kind: of_answer(status, code.as_deref()),
                    bare: code.is_none() && (300..500).contains(&status),
                    detail,
                    code,
                }
            }
            SdkError::ResponseError(answer) => spoilt(answer.raw().status().as_u16(), error),
            SdkError::TimeoutError(_) => plain(Kind::TimedOut, chain_text(error)),
            SdkError::DispatchFailure(failure) => {
                let kind = if is_tls(error) {
                    Kind::Tls
                } else if failure.is_user() {
                    Kind::Invalid
                } else {
                    // A timeout here is the connection's (the only one the SDK was given): a firewall that drops.
                    Kind::Unreachable
                };
                plain(kind, chain_text(error))
            }
            SdkError::ConstructionFailure(_) => plain(Kind::Invalid, chain_text(error)),
            _ => plain(Kind::Other, chain_text(error)),
        }
    }

    /// The same for a call that can miss no object, only its bucket.
    pub(super) fn about_bucket(self, bucket: &str) -> Meaning {
        if self.kind != Kind::NotFound {
            return self;
        }
        let detail = format!("no bucket {bucket} at this address ({})", self.detail);
        Meaning { kind: Kind::NoSuchBucket, detail, bare: false, ..self }
    }
}

/// An answer that is none: cut short, a proxy's page, another service.
fn spoilt(status: u16, error: &(dyn std::error::Error + 'static)) -> Meaning {
    let kind = match status {
        // The service may have done what was asked, and its answer was spoilt on the way.
        0..300 => Kind::Truncated,
        _ => of_answer(status, None),
    };
    let detail = format!("{status} with an answer that cannot be read: {}", chain_text(error));
    Meaning { kind, detail, code: None, bare: (300..500).contains(&status) }
}

/// Was it TLS itself that failed, and not the connection below it?
fn is_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    chain(error).iter().any(|link| link.is::<rustls::Error>())
}

/// The meaning of an answer's status and code. The code decides where it is known: servers disagree about statuses.
/// Codes: <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>, and MinIO's own (`XMinio…`).
fn of_answer(status: u16, code: Option<&str>) -> Kind {
    match code.unwrap_or_default() {
        "NoSuchKey" => return Kind::NotFound,
        "NoSuchBucket" => return Kind::NoSuchBucket,
        "PreconditionFailed" => return Kind::AlreadyExists,
        // Two conditional writes at once: neither is done, the next attempt will know.
        "ConditionalRequestConflict" | "OperationAborted" => return Kind::Busy,
        "AccessDenied"
        | "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "ExpiredToken"
        | "InvalidToken"
        | "TokenRefreshRequired"
        | "RequestTimeTooSkewed"
        | "AllAccessDisabled"
        | "AccountProblem" => {
            return Kind::Denied;
        }
        "SlowDown"
        | "ServiceUnavailable"
        | "InternalError"
        | "Throttling"
        | "ThrottlingException"
        | "TooManyRequests"
        | "RequestLimitExceeded" => return Kind::Busy,
        "RequestTimeout" => return Kind::TimedOut,
        // What arrived was not what was sent.
        "BadDigest" | "IncompleteBody" | "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch" => {
            return Kind::Truncated;
        }
        "QuotaExceeded"
        | "InsufficientCapacity"
        | "XMinioStorageFull"
        | "XMinioAdminBucketQuotaExceeded"
        | "EntityQuotaExceeded" => return Kind::OutOfSpace,
        "EntityTooLarge" => return Kind::TooLarge,
        "InvalidBucketName"
        | "PermanentRedirect"
        | "AuthorizationHeaderMalformed"
        | "IllegalLocationConstraintException" => return Kind::Invalid,
        // 403, but no matter of permissions: the object lies in an archive.
        "InvalidObjectState" => return Kind::Other,
        _ => {}
    }
    match status {
        401 | 403 => Kind::Denied,
        404 => Kind::NotFound,
        408 => Kind::TimedOut,
        412 => Kind::AlreadyExists,
        413 => Kind::TooLarge,
        // The object is shorter than it was: it changed while it was read.
        416 => Kind::Truncated,
        // A redirect to another region; or not S3 at all, such as plain HTTP at a TLS port.
        301 | 307 | 308 | 400 if code.is_none() => Kind::Invalid,
        429 | 500 | 502..=504 => Kind::Busy,
        507 => Kind::OutOfSpace,
        _ => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_statuses() {
        for (status, code, kind) in [
            (404, "NoSuchKey", Kind::NotFound),
            (404, "NoSuchBucket", Kind::NoSuchBucket),
            (404, "", Kind::NotFound),
            (403, "", Kind::Denied),
            (400, "ExpiredToken", Kind::Denied),
            (403, "RequestTimeTooSkewed", Kind::Denied),
            (403, "SignatureDoesNotMatch", Kind::Denied),
            (403, "InvalidObjectState", Kind::Other),
            (409, "ConditionalRequestConflict", Kind::Busy),
            (409, "BucketNotEmpty", Kind::Other),
            (412, "PreconditionFailed", Kind::AlreadyExists),
            (412, "", Kind::AlreadyExists),
            (416, "InvalidRange", Kind::Truncated),
            (429, "", Kind::Busy),
            (500, "InternalError", Kind::Busy),
            (501, "NotImplemented", Kind::Other),
            (502, "", Kind::Busy),
            (503, "SlowDown", Kind::Busy),
            (504, "", Kind::Busy),
            (507, "XMinioStorageFull", Kind::OutOfSpace),
            (507, "", Kind::OutOfSpace),
            (400, "BadDigest", Kind::Truncated),
            (400, "RequestTimeout", Kind::TimedOut),
            (301, "PermanentRedirect", Kind::Invalid),
        ] {
            assert_eq!(of_answer(status, Some(code)), kind, "{status} {code}");
        }
    }
}
