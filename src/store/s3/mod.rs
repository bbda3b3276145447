//! An S3 bucket as a store, through the AWS SDK.
//!
//! What is set up here was learned from other S3 servers than Amazon's:
//!
//! * One in-memory PUT an object with its SHA-256 as a value. The SDK's own checksums (`WhenSupported`, aws-sdk-rust#1240)
//!   and streamed bodies bring `aws-chunked` trailers that many servers refuse, and `WhenRequired` with only an algorithm
//!   announces a value that it then does not send.
//! * The SDK's retries are off: [`super::Store`] retries, and it must know of every attempt to settle writes.
//! * The SDK's stalled-stream protection is off. It measures throughput over both directions and is known to break
//!   uploads to slow servers (aws-sdk-rust#1146); the store's deadline on each attempt and its stall timeout on each body
//!   notice the same dead connections, and know what has already come.
//!
//! This module must not retry, and must never put a request into an error: only what the server or the system said.

mod meaning;

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use aws_sdk_s3::{
    Client,
    config::{
        BehaviorVersion, ConfigBag, Credentials, Intercept, Region, RequestChecksumCalculation,
        ResponseChecksumValidation, RuntimeComponents, SharedHttpClient, StalledStreamProtectionConfig,
        interceptors::BeforeDeserializationInterceptorContextRef, retry::RetryConfig, timeout::TimeoutConfig,
    },
    primitives::{ByteStream, DateTime, DateTimeFormat, SdkBody},
};
use aws_smithy_http_client::{
    Builder as HttpBuilder,
    tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode},
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use futures::{StreamExt, stream};
use jiff::Timestamp;
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use url::Url;

use self::meaning::Meaning;
use super::{
    Backend, ObjectBody, ObjectInfo, Page, PutMode, StoreError, StoreErrorKind,
    key::{check_key, check_prefix},
};

/// Where a bucket is and how to speak to it.
#[derive(Clone)]
pub struct S3Options {
    /// The server's address (`https://minio.example:9000`); none for Amazon's own.
    pub endpoint: Option<String>,
    /// The region that requests are signed for; most other servers take any, `us-east-1` by custom.
    pub region: String,
    /// `endpoint/bucket/key` instead of `bucket.endpoint/key`. Right for nearly every server but Amazon's.
    pub path_style: bool,
    /// The bucket. It must exist: nothing here creates one.
    pub bucket: String,
    /// What every key begins with, without slashes at its ends; may be empty.
    pub prefix: String,
    /// The key's id. Not a secret.
    pub access_key_id: String,
    /// The key's secret.
    pub secret_access_key: SecretString,
    /// The token of temporary credentials.
    pub session_token: Option<SecretString>,
    /// Certificate authorities in PEM that are trusted **instead of** the system's.
    pub ca_pem: Option<Vec<u8>>,
    /// How long making a connection may take, its TLS handshake included. 5 s suits most.
    pub connect_timeout: Duration,
}

impl fmt::Debug for S3Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Options")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("path_style", &self.path_style)
            .field("bucket", &self.bucket)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// A store below a prefix of an S3 bucket.
#[derive(Clone)]
pub struct S3Backend {
    client: Client,
    bucket: String,
    /// Empty, or ends in a slash.
    prefix: String,
    url: String,
    /// Where the server is, if not at Amazon's.
    endpoint: Option<String>,
}

impl fmt::Debug for S3Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the client: it holds the credentials.
        f.debug_struct("S3Backend").field("url", &self.url).finish_non_exhaustive()
    }
}

impl S3Backend {
    /// Checks the options and makes a client. Nothing is sent yet.
    ///
    /// Errors: `Invalid` for an address, prefix or CA file that cannot work; `Tls` where an `https` address meets a
    /// machine without any certificate authorities.
    pub fn connect(options: S3Options) -> Result<S3Backend, StoreError> {
        let prefix = options.prefix.trim_matches('/').to_owned();
        let mut url = format!("s3://{}", options.bucket);
        if !prefix.is_empty() {
            url = format!("{url}/{prefix}");
        }
        let invalid = |detail: String| StoreError::new(StoreErrorKind::Invalid, "open", url.clone(), detail);
        if options.bucket.is_empty() || options.bucket.contains('/') {
            return Err(invalid("the bucket's name is empty or holds a slash".to_owned()));
        }
        if !prefix.is_empty() {
            check_key("open", &prefix)?;
        }
        let secure = match &options.endpoint {
            Some(endpoint) => is_secure(endpoint).map_err(invalid)?,
            None => true,
        };
        let http = match (secure, &options.ca_pem) {
            // No TLS, so the system's authorities are neither needed nor looked for.
            (false, _) => HttpBuilder::new().build_http(),
            (true, Some(pem)) => https_client(own_authorities(pem).map_err(invalid)?).map_err(invalid)?,
            (true, None) => {
                check_system_authorities()
                    .map_err(|detail| StoreError::new(StoreErrorKind::Tls, "open", url.clone(), detail))?;
                https_client(TrustStore::default()).map_err(invalid)?
            }
        };
        let credentials = Credentials::new(
            options.access_key_id,
            options.secret_access_key.expose_secret(),
            options.session_token.as_ref().map(|token| token.expose_secret().to_owned()),
            None,
            "configuration",
        );
        let mut config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::new(options.region))
            .credentials_provider(credentials)
            .force_path_style(options.path_style)
            .http_client(http)
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().connect_timeout(options.connect_timeout).build())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            // Asks for no checksums in answers: every object's digest is checked above, where it is known.
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        config.set_endpoint_url(options.endpoint.clone());
        let prefix = if prefix.is_empty() { prefix } else { format!("{prefix}/") };
        Ok(S3Backend {
            client: Client::from_conf(config.build()),
            bucket: options.bucket,
            prefix,
            url,
            endpoint: options.endpoint,
        })
    }

    fn full_key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn error(&self, kind: StoreErrorKind, op: &'static str, key: &str, detail: impl Into<String>) -> StoreError {
        StoreError::new(kind, op, format!("{}/{key}", self.url), detail)
    }

    fn explain(&self, meaning: Meaning, op: &'static str, key: &str) -> StoreError {
        // Whom we could not talk to is not in the object's address.
        let detail = match (&self.endpoint, meaning.kind) {
            (Some(endpoint), StoreErrorKind::Unreachable | StoreErrorKind::Tls) => {
                format!("{endpoint}: {}", meaning.detail)
            }
            _ => meaning.detail,
        };
        let mut error = self.error(meaning.kind, op, key, detail);
        error.code = meaning.code;
        error
    }

    /// Gives an SDK error its meaning. An answer without a code (to every HEAD, a proxy's page) says too little: then the
    /// bucket is asked, and only where it answers well is the first answer about the object.
    async fn fail(&self, meaning: Meaning, op: &'static str, key: &str) -> StoreError {
        if !meaning.bare {
            return self.explain(meaning, op, key);
        }
        match self.probe(DateHeader::default()).await {
            Ok(()) => self.explain(meaning, op, key),
            Err(bucket) => self.explain(bucket, op, key),
        }
    }

    /// The cheapest call that needs just what a listing needs and whose refusal has a code. (A HEAD's has none, so that a
    /// wrong clock and a wrong key would look the same.)
    async fn probe(&self, date: DateHeader) -> Result<(), Meaning> {
        let request = self.client.list_objects_v2().bucket(&self.bucket).prefix(&self.prefix).max_keys(1);
        match request.customize().interceptor(date).send().await {
            Ok(_) => Ok(()),
            Err(error) => Err(Meaning::of(&error).about_bucket(&self.bucket)),
        }
    }

    fn info(
        &self,
        op: &'static str,
        key: &str,
        size: Option<i64>,
        time: Option<&DateTime>,
    ) -> Result<ObjectInfo, StoreError> {
        let size = size.and_then(|size| u64::try_from(size).ok());
        let time = time.and_then(timestamp);
        match (size, time) {
            (Some(size), Some(last_modified)) => Ok(ObjectInfo { key: key.to_owned(), size, last_modified }),
            _ => Err(self.error(StoreErrorKind::Other, op, key, "the store gave no size or no time of the object")),
        }
    }
}

#[async_trait]
impl Backend for S3Backend {
    fn url(&self) -> &str {
        &self.url
    }

    async fn put(&self, key: &str, body: Bytes, mode: PutMode) -> Result<(), StoreError> {
        check_key("put", key)?;
        let hashed = body.clone();
        // Tens of milliseconds for a large body: too long for a thread that serves connections.
        let sha256 = tokio::task::spawn_blocking(move || BASE64.encode(Sha256::digest(&hashed)))
            .await
            .map_err(|join| self.error(StoreErrorKind::Other, "put", key, join.to_string()))?;
        let mut request = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(self.full_key(key))
            .content_type("application/octet-stream")
            .checksum_sha256(sha256)
            .body(ByteStream::new(SdkBody::from(body)));
        if mode == PutMode::CreateOnly {
            request = request.if_none_match("*");
        }
        match request.send().await {
            Ok(_) => Ok(()),
            // A put misses no object: whatever was not found is the bucket.
            Err(error) => Err(self.explain(Meaning::of(&error).about_bucket(&self.bucket), "put", key)),
        }
    }

    async fn get(&self, key: &str, offset: u64) -> Result<ObjectBody, StoreError> {
        check_key("get", key)?;
        let mut request = self.client.get_object().bucket(&self.bucket).key(self.full_key(key));
        if offset > 0 {
            request = request.range(format!("bytes={offset}-"));
        }
        let output = match request.send().await {
            Ok(output) => output,
            Err(error) => return Err(self.fail(Meaning::of(&error), "get", key).await),
        };
        let length = output.content_length().and_then(|length| u64::try_from(length).ok());
        let (size, skip) = match output.content_range() {
            Some(range) => match parse_content_range(range) {
                Some((first, size)) if first == offset => (size, 0),
                _ => {
                    let detail = format!("asked for bytes from {offset} on, the store sent {range:?}");
                    return Err(self.error(StoreErrorKind::Other, "get", key, detail));
                }
            },
            // Without a range this is the whole object. A server that ignored the asked one is obeyed by skipping.
            None => match length {
                Some(size) => (size, offset),
                None => {
                    let detail = "the store did not say how long the object is";
                    return Err(self.error(StoreErrorKind::Other, "get", key, detail));
                }
            },
        };
        let tag = output.e_tag().unwrap_or_default().to_owned();
        let reading = Reading { backend: self.clone(), key: key.to_owned(), stream: output.body, skip };
        Ok(ObjectBody { size, tag, body: stream::try_unfold(reading, Reading::next).boxed() })
    }

    async fn head(&self, key: &str) -> Result<ObjectInfo, StoreError> {
        check_key("head", key)?;
        match self.client.head_object().bucket(&self.bucket).key(self.full_key(key)).send().await {
            Ok(output) => self.info("head", key, output.content_length(), output.last_modified()),
            Err(error) => Err(self.fail(Meaning::of(&error), "head", key).await),
        }
    }

    async fn list_page(&self, prefix: &str, dirs_only: bool, from: Option<&str>) -> Result<Page, StoreError> {
        check_prefix(prefix)?;
        let mut request = self.client.list_objects_v2().bucket(&self.bucket).prefix(self.full_key(prefix));
        if dirs_only {
            request = request.delimiter("/");
        }
        if let Some(token) = from {
            request = request.continuation_token(token);
        }
        let output = match request.send().await {
            Ok(output) => output,
            Err(error) => return Err(self.explain(Meaning::of(&error).about_bucket(&self.bucket), "list", prefix)),
        };
        let strange = |detail: String| self.error(StoreErrorKind::Other, "list", prefix, detail);
        let relative = |full: Option<&str>| -> Result<String, StoreError> {
            match full.and_then(|full| full.strip_prefix(self.prefix.as_str())) {
                Some(key) if key.starts_with(prefix) => Ok(key.to_owned()),
                _ => Err(strange(format!("the store listed {full:?}, which is not below the prefix"))),
            }
        };
        let mut page = Page::default();
        for object in output.contents() {
            let key = relative(object.key())?;
            // A console's mark for an empty folder: no key of ours ends so, and it is no object.
            if !dirs_only && !key.is_empty() && !key.ends_with('/') {
                page.objects.push(self.info("list", &key, object.size(), object.last_modified())?);
            }
        }
        for dir in output.common_prefixes() {
            page.dirs.push(relative(dir.prefix())?.trim_end_matches('/').to_owned());
        }
        page.next = match (output.is_truncated(), output.next_continuation_token()) {
            (Some(false), _) => None,
            (Some(true), Some(token)) if !token.is_empty() => Some(token.to_owned()),
            (Some(true), _) => return Err(strange("the listing goes on, but the store did not say where".to_owned())),
            (None, _) => return Err(strange("the store did not say whether the listing is complete".to_owned())),
        };
        Ok(page)
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        check_key("delete", key)?;
        match self.client.delete_object().bucket(&self.bucket).key(self.full_key(key)).send().await {
            Ok(_) => Ok(()),
            Err(error) => match self.fail(Meaning::of(&error), "delete", key).await {
                error if error.kind == StoreErrorKind::NotFound => Ok(()),
                error => Err(error),
            },
        }
    }

    /// From the `Date` of an answer about the bucket, to the second.
    async fn now(&self) -> Result<Timestamp, StoreError> {
        let date = DateHeader::default();
        self.probe(date.clone()).await.map_err(|meaning| self.explain(meaning, "clock", ""))?;
        let header = date.0.get().map(String::as_str).unwrap_or_default();
        let time = DateTime::from_str(header, DateTimeFormat::HttpDate).ok().and_then(|time| timestamp(&time));
        time.ok_or_else(|| {
            let detail = format!("the store's answer has no Date that can be read: {header:?}");
            self.error(StoreErrorKind::Other, "clock", "", detail)
        })
    }
}

/// A body on its way.
struct Reading {
    backend: S3Backend,
    key: String,
    stream: ByteStream,
    /// Bytes to pass over where the server ignored the asked range.
    skip: u64,
}

impl Reading {
    async fn next(mut self) -> Result<Option<(Bytes, Reading)>, StoreError> {
        loop {
            match self.stream.next().await {
                None => return Ok(None),
                Some(Ok(mut chunk)) => {
                    let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(chunk.len());
                    self.skip -= skipped as u64;
                    let rest = chunk.split_off(skipped);
                    if !rest.is_empty() {
                        return Ok(Some((rest, self)));
                    }
                }
                Some(Err(error)) => {
                    let detail = super::error::chain_text(&error);
                    return Err(self.backend.error(StoreErrorKind::Truncated, "get", &self.key, detail));
                }
            }
        }
    }
}

/// Keeps the `Date` header of an answer, which the SDK's outputs leave out.
#[derive(Clone, Debug, Default)]
struct DateHeader(Arc<OnceLock<String>>);

impl Intercept for DateHeader {
    fn name(&self) -> &'static str {
        "DateHeader"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), aws_sdk_s3::error::BoxError> {
        if let Some(date) = context.response().headers().get("date") {
            // Set once: one answer, one date.
            let _ = self.0.set(date.to_owned());
        }
        Ok(())
    }
}

/// Is the address one, and is it `https`? The error never repeats the address: it may hold a password.
fn is_secure(endpoint: &str) -> Result<bool, String> {
    let url = Url::parse(endpoint).map_err(|error| format!("the endpoint is not an address: {error}"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("the endpoint must not hold a user or password".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() || url.host_str().is_none() {
        return Err("the endpoint must be a scheme, a host and a port only".to_owned());
    }
    match url.scheme() {
        "https" => Ok(true),
        "http" => Ok(false),
        _ => Err("the endpoint must begin with http:// or https://".to_owned()),
    }
}

fn https_client(trust: TrustStore) -> Result<SharedHttpClient, String> {
    let tls =
        TlsContext::builder().with_trust_store(trust).build().map_err(|error| super::error::chain_text(&error))?;
    Ok(HttpBuilder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).tls_context(tls).build_https())
}

/// The given authorities, checked: the SDK's client panics on a PEM that does not parse.
fn own_authorities(pem: &[u8]) -> Result<TrustStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| format!("the CA file is not PEM: {error}"))?;
        roots.add(certificate).map_err(|error| format!("the CA file holds a certificate that is none: {error}"))?;
    }
    if roots.is_empty() {
        return Err("the CA file holds no certificate".to_owned());
    }
    Ok(TrustStore::empty().with_pem_certificate(pem))
}

/// A machine without authorities (a bare container) trusts nobody; say so before the first handshake does in riddles.
fn check_system_authorities() -> Result<(), String> {
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if usable == 0 {
        return Err("this machine has no certificate authorities (package ca-certificates)".to_owned());
    }
    Ok(())
}

/// The first byte and the whole size out of `bytes 5-9/10`.
fn parse_content_range(range: &str) -> Option<(u64, u64)> {
    let (span, size) = range.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = span.split_once('-')?;
    let (first, last, size) = (first.parse().ok()?, last.parse::<u64>().ok()?, size.parse().ok()?);
    // Anything but the rest of the object would leave a hole at its end.
    (last.checked_add(1)? == size && first <= last).then_some((first, size))
}

fn timestamp(time: &DateTime) -> Option<Timestamp> {
    Timestamp::new(time.secs(), i32::try_from(time.subsec_nanos()).ok()?).ok()
}

#[cfg(test)]
mod tests;
