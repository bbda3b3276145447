//! Why a receiver was not told.

use std::{error::Error, time::Duration};

use reqwest::StatusCode;
use url::Url;

use crate::config::ConfigError;

/// A message that a receiver did not take. No text here holds its address or a token.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// Its address or token cannot be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No connection can be made with what is configured.
    #[error("{detail}")]
    Invalid {
        /// Why.
        detail: String,
    },
    /// It answered that it does not take this.
    #[error("it answered {status}")]
    Refused {
        /// Its answer.
        status: StatusCode,
    },
    /// It answered that it cannot take this now.
    #[error("it answered {status}")]
    Busy {
        /// Its answer.
        status: StatusCode,
    },
    /// It did not answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// No connection, or one that broke.
    #[error("{detail}")]
    Unreachable {
        /// Why.
        detail: String,
    },
}

impl NotifyError {
    /// What an answer means; nothing where it is one of success.
    pub(super) fn of_status(status: StatusCode) -> Option<Self> {
        match status {
            _ if status.is_success() => None,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Some(Self::Busy { status }),
            _ if status.is_server_error() => Some(Self::Busy { status }),
            _ => Some(Self::Refused { status }),
        }
    }

    /// What went wrong with a request to this address.
    pub(super) fn of_request(error: reqwest::Error, url: &Url, timeout: Duration) -> Self {
        if error.is_timeout() {
            return Self::TimedOut(timeout);
        }
        let unusable = error.is_builder();
        let error = error.without_url();
        let mut words = vec![error.to_string()];
        let mut cause: Option<&(dyn Error + 'static)> = error.source();
        while let Some(link) = cause {
            words.push(link.to_string());
            cause = link.source();
        }
        words.dedup();
        let detail = without_address(&words.join(": "), url);
        if unusable { Self::Invalid { detail } } else { Self::Unreachable { detail } }
    }

    /// May another try succeed without anyone doing anything?
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::TimedOut(_) | Self::Unreachable { .. })
    }

    /// The next step.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Config(error) => return error.hint(),
            Self::Invalid { .. } => "check `ca_file` and `token_file` of the receiver",
            Self::Refused { status } => match *status {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "check the receiver's `token_file`, or its address",
                StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => "check the receiver's address",
                status if status.is_redirection() => {
                    "it answers from another address: configure that one, no redirection is followed"
                }
                _ => "see the receiver's own log for why it refused the message",
            },
            Self::Busy { .. } => "the next run tries again; see whether the receiver is well",
            Self::TimedOut(_) | Self::Unreachable { .. } => {
                "the next run tries again; check that the receiver runs, its address, and that network policies let this machine through"
            }
        };
        Some(hint.to_owned())
    }
}

/// A text of a library without what of the address may be in it: often that is a secret.
fn without_address(text: &str, url: &Url) -> String {
    let pieces = [Some(url.as_str()), url.query(), Some(url.path()), url.host_str()];
    let long = |piece: &&str| piece.len() > 2;
    pieces.into_iter().flatten().filter(long).fold(text.to_owned(), |text, piece| text.replace(piece, "…"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn answers_by_meaning() {
        for (code, transient) in [
            (200, None),
            (204, None),
            (301, Some(false)),
            (400, Some(false)),
            (401, Some(false)),
            (404, Some(false)),
            (408, Some(true)),
            (429, Some(true)),
            (500, Some(true)),
            (503, Some(true)),
        ] {
            let error = NotifyError::of_status(StatusCode::from_u16(code).unwrap());
            assert_eq!(error.as_ref().map(NotifyError::is_transient), transient, "{code}");
            assert!(error.is_none_or(|error| error.hint().is_some() && error.to_string().contains(&code.to_string())));
        }
    }

    #[test]
    fn nothing_of_an_address_is_in_an_error() {
        let url: Url = "https://hooks.example.org/services/T0/SECRET?key=VALUE".parse().unwrap();
        let text = "name hooks.example.org of https://hooks.example.org/services/T0/SECRET?key=VALUE: /services/T0/SECRET, key=VALUE";
        assert_eq!(without_address(text, &url), "name … of …: …, …");
    }
}
