//! One NATS server: address, login, and requests to JetStream's API over plain messages.
//!
//! A connection is never mended: what was under way on it is lost with it, and whoever needs another opens one.

use std::{fmt, time::Duration};

use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, RequestErrorKind, ServerError};
use bytes::Bytes;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{error::NatsError, inventory::Now};
use crate::config::NatsConfig;

/// How long a connection may take to be made, login included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long an answer of the API may take.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a lost server is noticed where nothing else moves: async-nats gives up after three unanswered ones.
const PING: Duration = Duration::from_secs(10);
/// Pages of a list that changes while it is read are read again so often.
const LISTINGS: usize = 5;
/// The server has no JetStream, or the account has not: `api_error.ErrCode`, nats-server `server/errors.json`.
const NOT_ENABLED: [u64; 2] = [10076, 10039];

/// A server's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version {
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) patch: u32,
}

impl Version {
    pub(super) const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    /// `2.10.12`, also with something after it: `2.12.0-preview.1`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.trim_start_matches('v');
        let mut numbers = text.split(['.', '-', '+']).map(str::parse::<u32>);
        let mut next = || numbers.next().and_then(Result::ok);
        Some(Self { major: next()?, minor: next()?, patch: next()? })
    }

    /// Does it send a snapshot as records instead of a tar of files?
    pub(super) fn sends_records(self) -> bool {
        self >= Self::new(2, 15, 0)
    }

    /// Does it wait for acknowledgements? Older ones send a chunk every 10 ms whatever comes (research B1).
    pub(super) fn waits_for_acknowledgements(self) -> bool {
        self >= Self::new(2, 10, 12)
    }

    /// Does it wait for them for five seconds, not for two (research B1)?
    pub(super) fn waits_for_five_seconds(self) -> bool {
        self >= Self::new(2, 12, 5)
    }

    /// Can messages be removed from a stream while a snapshot of it runs? Where not, a work queue keeps what was acknowledged
    /// meanwhile (research, part 0, 6).
    pub(super) fn removes_during_a_snapshot(self) -> bool {
        self >= Self::new(2, 12, 3) || (self >= Self::new(2, 11, 12) && self < Self::new(2, 12, 0))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// One server, with what is needed to log in.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) config: NatsConfig,
    secret: Option<SecretString>,
}

/// What became of a connection.
#[derive(Clone, Debug)]
enum Trouble {
    /// It is gone.
    Lost,
    /// The server sent an error, which may be about anything on the connection.
    Said(String),
}

/// One connection.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) client: Client,
    /// Host and port, for messages.
    pub(super) server: String,
    pub(super) version: Version,
    trouble: watch::Receiver<Option<Trouble>>,
}

impl Server {
    pub(super) fn new(config: NatsConfig, secret: Option<SecretString>) -> Self {
        Self { config, secret }
    }

    /// Host and port, for messages.
    pub(super) fn name(&self) -> String {
        self.config.endpoint.address()
    }

    /// How it is logged in, for messages.
    pub(super) fn login(&self) -> String {
        match (&self.config.endpoint.user, &self.secret) {
            (Some(user), _) => format!("as user `{user}`"),
            (None, Some(_)) => "with a token".into(),
            (None, None) => "without a login".into(),
        }
    }

    /// Opens a connection. Servers of a cluster, and versions before 2.9, are refused.
    pub(super) async fn connect(&self) -> Result<Connection, NatsError> {
        let (told, trouble) = watch::channel(None);
        let secret = || self.secret.as_ref().map_or_else(String::new, |secret| secret.expose_secret().to_owned());
        let login = match &self.config.endpoint.user {
            Some(user) => ConnectOptions::with_user_and_password(user.clone(), secret()),
            None if self.secret.is_some() => ConnectOptions::with_token(secret()),
            None => ConnectOptions::new(),
        };
        let options = login
            .name("altlas-backup")
            .connection_timeout(CONNECT_TIMEOUT)
            .request_timeout(Some(ANSWER_TIMEOUT))
            .ping_interval(PING)
            .max_reconnects(1)
            .ignore_discovered_servers()
            .event_callback(move |event| {
                let trouble = match event {
                    Event::Disconnected | Event::Closed | Event::LameDuckMode => Some(Trouble::Lost),
                    Event::ServerError(ServerError::Other(text)) => Some(Trouble::Said(text)),
                    _ => None,
                };
                if let Some(trouble) = trouble {
                    // The first one is the cause.
                    told.send_if_modified(|first| {
                        let takes = first.is_none();
                        first.get_or_insert(trouble);
                        takes
                    });
                }
                async {}
            });
        let url = format!("nats://{}", self.name());
        let client = match tokio::time::timeout(CONNECT_TIMEOUT, options.connect(url)).await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => return Err(self.not_connected(&error)),
            Err(_) => {
                let detail = format!("no answer within {} s", CONNECT_TIMEOUT.as_secs());
                return Err(NatsError::Unreachable { server: self.name(), detail });
            }
        };
        let info = client.server_info();
        let server = self.name();
        let not_supported = |what: String| NatsError::NotSupported { server: self.name(), what };
        let version = Version::parse(&info.version)
            .ok_or_else(|| not_supported(format!("says that its version is `{}`", info.version)))?;
        if version < Version::new(2, 9, 0) {
            return Err(not_supported(format!("is NATS {version}")));
        }
        if let Some(cluster) = info.cluster {
            return Err(not_supported(format!("is a server of the cluster `{cluster}`")));
        }
        Ok(Connection { client, server, version, trouble })
    }

    fn not_connected(&self, error: &async_nats::ConnectError) -> NatsError {
        let server = self.name();
        match error.kind() {
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                NatsError::Login { server, login: self.login() }
            }
            ConnectErrorKind::Tls => NatsError::NotSupported { server, what: format!("asks for TLS ({error})") },
            _ => NatsError::Unreachable { server, detail: error.to_string() },
        }
    }
}

impl Connection {
    /// Host, port and version, for messages.
    pub(super) fn name(&self) -> String {
        format!("{} (NATS {})", self.server, self.version)
    }

    /// Ends when the connection is gone or the server complained, with what that means for `what`.
    pub(super) async fn trouble(&self, what: &str) -> NatsError {
        let mut trouble = self.trouble.clone();
        let found = match trouble.wait_for(Option::is_some).await {
            Ok(found) => found.clone(),
            Err(_) => None,
        };
        let (server, what) = (self.server.clone(), what.to_owned());
        match found {
            Some(Trouble::Said(text)) => NatsError::Denied { server, what, text },
            Some(Trouble::Lost) | None => NatsError::Lost { server, what },
        }
    }

    fn lost(&self, what: &str, error: impl fmt::Display) -> NatsError {
        tracing::debug!("{what}: {error}");
        NatsError::Lost { server: self.server.clone(), what: what.to_owned() }
    }

    /// One request to the API (`$JS.API.` and `subject`), with its answer as JSON.
    pub(super) async fn ask(&self, what: &str, subject: &str, body: &Value) -> Result<Value, NatsError> {
        answered(&self.server, what, &self.bytes(what, subject, body).await?)
    }

    /// The same, with the answer as it came.
    async fn bytes(&self, what: &str, subject: &str, body: &Value) -> Result<Bytes, NatsError> {
        let payload = match body {
            Value::Null => Bytes::new(),
            body => body.to_string().into(),
        };
        let (server, what) = (self.server.clone(), what.to_owned());
        let answer = tokio::select! {
            biased;
            trouble = self.trouble(&what) => return Err(trouble),
            answer = self.client.request(format!("$JS.API.{subject}"), payload) => answer,
        };
        match answer {
            Ok(message) => Ok(message.payload),
            Err(error) => Err(match error.kind() {
                RequestErrorKind::NoResponders => NatsError::NoJetStream { server },
                RequestErrorKind::TimedOut => NatsError::NoAnswer { server, what },
                _ => self.lost(&what, error),
            }),
        }
    }

    /// Everything of a paged list.
    async fn list(&self, what: &str, subject: &str, field: &str) -> Result<Listing, NatsError> {
        let mut listing = Listing::default();
        loop {
            let mut page = self.ask(what, subject, &json!({"offset": listing.items.len()})).await?;
            let items = match page.get_mut(field).map(Value::take) {
                Some(Value::Array(items)) => items,
                Some(Value::Null) | None => Vec::new(),
                Some(_) => return Err(strange(&self.server, what, &page)),
            };
            let total = page["total"].as_u64().ok_or_else(|| strange(&self.server, what, &page))?;
            listing.note(&page);
            listing.pages += 1;
            let last = items.is_empty();
            listing.items.extend(items);
            if listing.items.len() as u64 >= total {
                return Ok(listing);
            }
            // What was deleted meanwhile moves what comes after it to where we have been.
            if last {
                listing.short = true;
                return Ok(listing);
            }
        }
    }

    /// Every stream of the account, sorted by name, as `STREAM.LIST` tells it.
    pub(super) async fn streams(&self) -> Result<Streams, NatsError> {
        let read = || self.list("listing the streams", "STREAM.LIST", "streams");
        let mut before: Option<Vec<String>> = None;
        for _ in 0..LISTINGS {
            let listing = read().await?;
            let mut streams = Vec::new();
            for info in listing.items {
                let name = info["config"]["name"].as_str().map(str::to_owned);
                let name = name.ok_or_else(|| strange(&self.server, "listing the streams", &info))?;
                streams.push((name, info));
            }
            streams.sort_by(|a, b| a.0.cmp(&b.0));
            streams.dedup_by(|a, b| a.0 == b.0);
            let names: Vec<String> = streams.iter().map(|(name, _)| name.clone()).collect();
            if !listing.short && (listing.pages == 1 || before.as_ref() == Some(&names)) {
                return Ok(Streams { streams, silent: listing.silent });
            }
            before = Some(names);
        }
        Err(NatsError::Unsteady { server: self.server.clone(), what: "streams".into() })
    }

    /// Every consumer of a stream, sorted by name, as `CONSUMER.LIST` tells it.
    pub(super) async fn consumers(&self, stream: &str) -> Result<Vec<(String, Value)>, NatsError> {
        let what = format!("listing the consumers of stream `{stream}`");
        let subject = format!("CONSUMER.LIST.{stream}");
        let mut before: Option<Vec<String>> = None;
        for _ in 0..LISTINGS {
            let listing = self.list(&what, &subject, "consumers").await?;
            let mut consumers = Vec::new();
            for info in listing.items {
                let name = info["name"].as_str().map(str::to_owned);
                let name = name.ok_or_else(|| strange(&self.server, &what, &info))?;
                consumers.push((name, info));
            }
            consumers.sort_by(|a, b| a.0.cmp(&b.0));
            consumers.dedup_by(|a, b| a.0 == b.0);
            let names: Vec<String> = consumers.iter().map(|(name, _)| name.clone()).collect();
            if let Some(silent) = listing.silent.first() {
                return Err(NatsError::Silent { server: self.server.clone(), what: format!("consumer `{silent}`") });
            }
            if !listing.short && (listing.pages == 1 || before.as_ref() == Some(&names)) {
                return Ok(consumers);
            }
            before = Some(names);
        }
        Err(NatsError::Unsteady { server: self.server.clone(), what: format!("consumers of stream `{stream}`") })
    }

    /// `STREAM.INFO`; none where there is no such stream.
    pub(super) async fn stream(&self, name: &str, body: &Value) -> Result<Option<Value>, NatsError> {
        match self.ask(&format!("looking at stream `{name}`"), &format!("STREAM.INFO.{name}"), body).await {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What a stream has and has no more; none where there is no such stream.
    pub(super) async fn now(&self, name: &str) -> Result<Option<Now>, NatsError> {
        let what = format!("looking at stream `{name}`");
        let answer = self.bytes(&what, &format!("STREAM.INFO.{name}"), &json!({"deleted_details": true})).await?;
        // There may be millions of deleted messages: they are not read as JSON's values.
        match serde_json::from_slice(&answer) {
            Ok(now) => Ok(Some(now)),
            Err(_) => match answered(&self.server, &what, &answer) {
                Err(error) if error.is_not_found() => Ok(None),
                Err(error) => Err(error),
                Ok(answer) => Err(strange(&self.server, &what, &answer)),
            },
        }
    }

    /// Every connection to the account, as the first server tells it that is asked (nats-server `events.go`); none where none does.
    pub(super) async fn connections(&self) -> Result<Option<Value>, NatsError> {
        const WHAT: &str = "looking who is connected";
        let answer = tokio::select! {
            biased;
            trouble = self.trouble(WHAT) => return Err(trouble),
            answer = self.client.request("$SYS.REQ.ACCOUNT.PING.CONNZ", Bytes::new()) => answer,
        };
        match answer {
            Ok(message) => answered(&self.server, WHAT, &message.payload).map(Some),
            Err(error) => match error.kind() {
                RequestErrorKind::NoResponders => Ok(None),
                RequestErrorKind::TimedOut => {
                    Err(NatsError::NoAnswer { server: self.server.clone(), what: WHAT.to_owned() })
                }
                _ => Err(self.lost(WHAT, error)),
            },
        }
    }

    /// Publishes nothing on a subject that nobody listens on, to learn whether we may.
    pub(super) async fn may_publish(&self, what: &str, subject: String) -> Result<(), NatsError> {
        let lost = |_| NatsError::Lost { server: self.server.clone(), what: what.to_owned() };
        self.client.publish(subject, Bytes::new()).await.map_err(lost)?;
        // A complaint comes before the next answer.
        self.ask(what, "INFO", &Value::Null).await.map(|_| ())
    }

    /// Deletes a stream with its consumers; false where there is none.
    pub(super) async fn delete(&self, name: &str) -> Result<bool, NatsError> {
        match self.ask(&format!("deleting stream `{name}`"), &format!("STREAM.DELETE.{name}"), &Value::Null).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Pages of a list.
#[derive(Default)]
struct Listing {
    items: Vec<Value>,
    pages: usize,
    /// It ended before its announced length.
    short: bool,
    /// Names of what the server could not tell of.
    silent: Vec<String>,
}

impl Listing {
    /// `missing` holds names, `offline` (2.12 and later) names and reasons.
    fn note(&mut self, page: &Value) {
        let missing = page["missing"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
        let offline = page["offline"].as_object().into_iter().flat_map(|offline| offline.keys().cloned());
        self.silent.extend(missing.chain(offline));
    }
}

/// Every stream of an account.
pub(super) struct Streams {
    /// Names and what `STREAM.LIST` tells of them.
    pub(super) streams: Vec<(String, Value)>,
    /// Names of those that the server has and cannot tell of.
    pub(super) silent: Vec<String>,
}

/// What an answer of the API says: JSON, an error or not.
pub(super) fn answered(server: &str, what: &str, payload: &[u8]) -> Result<Value, NatsError> {
    let (server, what) = (server.to_owned(), what.to_owned());
    let Ok(answer) = serde_json::from_slice::<Value>(payload) else {
        let text = String::from_utf8_lossy(&payload[..payload.len().min(200)]).into_owned();
        return Err(NatsError::Strange { server, what, text });
    };
    let Some(error) = answer.get("error") else { return Ok(answer) };
    let code = error["err_code"].as_u64().or_else(|| error["code"].as_u64()).unwrap_or_default();
    if NOT_ENABLED.contains(&code) {
        return Err(NatsError::NoJetStream { server });
    }
    let text = error["description"].as_str().unwrap_or("an error without a description").to_owned();
    Err(NatsError::Said { server, what, code, text })
}

fn strange(server: &str, what: &str, answer: &Value) -> NatsError {
    let text = answer.to_string().chars().take(200).collect();
    NatsError::Strange { server: server.to_owned(), what: what.to_owned(), text }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (text, want) in [
            ("2.9.10", Some((2, 9, 10))),
            ("v2.15.1", Some((2, 15, 1))),
            ("2.12.0-preview.1", Some((2, 12, 0))),
            ("2.9", None),
            ("", None),
            ("two", None),
        ] {
            assert_eq!(Version::parse(text).map(|v| (v.major, v.minor, v.patch)), want, "{text}");
        }
        let version = |text| Version::parse(text).unwrap();
        assert!(version("2.15.0").sends_records() && !version("2.14.5").sends_records());
        assert!(version("2.10.12").waits_for_acknowledgements() && !version("2.10.11").waits_for_acknowledgements());
        for (text, removes) in
            [("2.9.10", false), ("2.11.11", false), ("2.11.12", true), ("2.12.2", false), ("2.12.3", true)]
        {
            assert_eq!(version(text).removes_during_a_snapshot(), removes, "{text}");
        }
    }

    #[test]
    fn answers() {
        let answer = |text: &str| answered("s", "asking", text.as_bytes());
        assert_eq!(answer(r#"{"total":3}"#).unwrap()["total"], 3);
        let error = answer(r#"{"error":{"code":404,"err_code":10059,"description":"stream not found"}}"#).unwrap_err();
        assert!(error.is_not_found(), "{error}");
        let error = answer(r#"{"error":{"code":503,"err_code":10076,"description":"x"}}"#).unwrap_err();
        assert!(matches!(error, NatsError::NoJetStream { .. }), "{error}");
        assert!(matches!(answer("not JSON").unwrap_err(), NatsError::Strange { .. }));
    }
}
