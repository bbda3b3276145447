//! One receiver of alerts: a webhook, which gets a POST of each change, or an Alertmanager. One request at a time, each with a deadline.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::{Certificate, Client, RequestBuilder, redirect};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::{NotifyError, alertmanager, message::Message};
use crate::config::NotifierConfig;

/// How long one request may take, the connection included.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Waits between tries, in seconds; the last one again and again.
const WAITS: [u64; 5] = [1, 2, 4, 8, 15];

/// How long to go on trying.
pub(super) struct Patience {
    until: Instant,
    cancel: CancellationToken,
}

impl Patience {
    /// Until then, or until the token is cancelled.
    pub(super) fn new(long: Duration, cancel: CancellationToken) -> Self {
        Self { until: Instant::now() + long, cancel }
    }

    /// One try.
    pub(super) fn none() -> Self {
        Self::new(Duration::ZERO, CancellationToken::new())
    }

    /// Waits before the next try after so many; false where there is to be none.
    async fn wait(&self, tries: u32) -> bool {
        let place = (tries.saturating_sub(1) as usize).min(WAITS.len() - 1);
        let next = Instant::now() + Duration::from_secs(WAITS[place]);
        if next > self.until {
            return false;
        }
        tokio::select! {
            () = tokio::time::sleep_until(next) => true,
            () = self.cancel.cancelled() => false,
        }
    }
}

enum Kind {
    Webhook,
    Alertmanager,
}

/// A receiver, with its secrets read.
pub(super) struct Receiver {
    kind: Kind,
    url: Url,
    token: Option<SecretString>,
    client: Client,
}

impl Receiver {
    /// Reads the secrets of the receiver with this name; nothing is sent yet.
    pub(super) fn open(name: &str, config: &NotifierConfig) -> Result<Self, NotifyError> {
        let (address, token) = config.secrets()?;
        let (kind, url) = match name {
            "alertmanager" => (Kind::Alertmanager, alertmanager::endpoint(&address)),
            _ => (Kind::Webhook, address),
        };
        let invalid = |detail: String| NotifyError::Invalid { detail };
        // A POST that is redirected becomes a GET, which tells nobody anything.
        let mut builder = Client::builder().timeout(TIMEOUT).redirect(redirect::Policy::none());
        builder = builder.user_agent(concat!("altlas-backup/", env!("CARGO_PKG_VERSION")));
        if let Some(path) = &config.ca_file {
            let shown = path.display();
            let pem = std::fs::read(path).map_err(|error| invalid(format!("{shown}: {error}")))?;
            let certificates = Certificate::from_pem_bundle(&pem).unwrap_or_default();
            if certificates.is_empty() {
                return Err(invalid(format!("{shown} holds no certificate")));
            }
            builder = builder.tls_certs_only(certificates);
        }
        let client = builder.build().map_err(|error| NotifyError::of_request(error, &url, TIMEOUT))?;
        Ok(Self { kind, url, token, client })
    }

    /// Tells one change, again while that may help and there is patience left; with the number of tries.
    pub(super) async fn tell(&self, message: &Message, patience: &Patience) -> (u32, Result<(), NotifyError>) {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.post(std::slice::from_ref(message)).await {
                Err(error) if error.is_transient() && patience.wait(tries).await => {
                    tracing::info!("telling {} again: {error}", message.id);
                }
                done => return (tries, done),
            }
        }
    }

    /// Tells again what is firing still, where a receiver forgets what it does not hear of.
    pub(super) async fn remind(&self, messages: &[Message]) -> Result<(), NotifyError> {
        match self.kind {
            Kind::Alertmanager if !messages.is_empty() => self.post(messages).await,
            _ => Ok(()),
        }
    }

    async fn post(&self, messages: &[Message]) -> Result<(), NotifyError> {
        let failed = |error| NotifyError::of_request(error, &self.url, TIMEOUT);
        let answer = self.request(messages).send().await.map_err(failed)?;
        NotifyError::of_status(answer.status()).map_or(Ok(()), Err)
    }

    fn request(&self, messages: &[Message]) -> RequestBuilder {
        let mut request = self.client.post(self.url.clone());
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose_secret());
        }
        match (&self.kind, messages) {
            (Kind::Webhook, [message]) => request.json(message),
            (Kind::Webhook, messages) => request.json(messages),
            (Kind::Alertmanager, messages) => {
                let now = Timestamp::now();
                request.json(&messages.iter().map(|message| alertmanager::alert(message, now)).collect::<Vec<_>>())
            }
        }
    }
}
