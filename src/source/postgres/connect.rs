//! Connections: address, password, TLS, and the session settings that everything else leans on.

use std::{
    collections::HashSet,
    ops::Deref,
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use secrecy::{ExposeSecret, SecretString};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls, config::SslMode, error::SqlState};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    catalog,
    error::{PostgresError, query, query_failed},
    pooler,
    words::words,
};
use crate::config::{PostgresConfig, PostgresHost, TlsMode};

/// How long a connection may take to be made, TLS and login included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// The name that `pg_stat_activity` shows.
const APPLICATION: &str = "altlas-backup";

/// Settings of every session. A dead client must not keep a statement running for hours: the server looks for us.
const SESSION: &str = "SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0; \
     SET idle_session_timeout = 0; SET default_transaction_read_only = off; \
     SET client_min_messages = warning; SET client_connection_check_interval = '10s'; SET search_path = ''; SET standard_conforming_strings = on; \
     SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings WHERE name = 'transaction_timeout'";

/// Settings that rows are read, written and fingerprinted under: COPY's text depends on each. The encoding is not among them: COPY
/// has an option for it, so that statements, with the names in them, stay UTF-8 whatever the database's own is.
const ROW_SETTINGS: [&str; 10] = [
    "DateStyle = 'ISO'",
    "IntervalStyle = 'postgres'",
    "TimeZone = 'UTC'",
    "extra_float_digits = 3",
    "bytea_output = 'hex'",
    "lc_monetary = 'C'",
    "xmloption = 'content'",
    "search_path = ''",
    "row_security = off",
    "synchronize_seqscans = off",
];

/// The settings of rows, as statements.
pub(super) fn row_settings() -> Vec<String> {
    ROW_SETTINGS.iter().map(|setting| format!("SET {setting}")).collect()
}

/// One server, with what is needed to log in.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) config: PostgresConfig,
    password: Option<SecretString>,
    /// Databases whose sessions are known to be nobody else's.
    not_pooled: Arc<tokio::sync::Mutex<HashSet<String>>>,
}

/// An open connection. Dropping it closes the socket at once, which ends a COPY.
pub(super) struct Session {
    client: Client,
    driver: JoinHandle<()>,
    ended: Arc<OnceLock<tokio_postgres::Error>>,
    pub(super) database: String,
}

impl Session {
    /// Why the server ended the connection while nobody waited for an answer, as far as it said. Whoever asks afterwards only hears that it is closed.
    pub(super) fn ended(&self, what: impl Into<String>) -> Option<PostgresError> {
        self.ended.get().map(|error| query_failed(what.into(), error))
    }
}

impl Deref for Session {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Server {
    pub(super) fn new(config: PostgresConfig, password: Option<SecretString>) -> Self {
        Self { config, password, not_pooled: Arc::default() }
    }

    /// Host and port, for messages.
    pub(super) fn name(&self) -> String {
        let endpoint = &self.config.endpoint;
        match &endpoint.host {
            PostgresHost::Tcp(host) if host.contains(':') => format!("[{host}]:{}", endpoint.port),
            PostgresHost::Tcp(host) => format!("{host}:{}", endpoint.port),
            PostgresHost::Unix(folder) => format!("{}:{}", folder.display(), endpoint.port),
        }
    }

    pub(super) fn password(&self) -> Option<&SecretString> {
        self.password.as_ref()
    }

    /// The maintenance database of the configuration.
    pub(super) fn maintenance(&self) -> &str {
        &self.config.endpoint.database
    }

    /// Opens a connection to `database`, with the settings of every session. A pooler is refused before anything is set: the next transaction on
    /// that session may be an application's.
    pub(super) async fn connect(&self, database: &str) -> Result<Session, PostgresError> {
        let session = self.open(database).await?;
        // One after the other: each look may open a second session, and a pool has only so many.
        let mut known = self.not_pooled.lock().await;
        if !known.contains(database) {
            let looking = pooler::is_shared(&session, async || self.open(database).await);
            let is_shared = tokio::time::timeout(CONNECT_TIMEOUT, looking).await;
            if is_shared.map_err(|_| self.silent())?? {
                return Err(PostgresError::Pooler { server: self.name() });
            }
            known.insert(database.to_owned());
        }
        drop(known);
        let set_up = tokio::time::timeout(CONNECT_TIMEOUT, session.batch_execute(SESSION)).await;
        set_up.map_err(|_| self.silent())?.map_err(query("setting up a session"))?;
        Ok(session)
    }

    fn silent(&self) -> PostgresError {
        let detail = format!("no answer to the first statement within {} s", CONNECT_TIMEOUT.as_secs());
        PostgresError::Unreachable { server: self.name(), detail }
    }

    /// Opens a connection on which nothing has been said yet.
    async fn open(&self, database: &str) -> Result<Session, PostgresError> {
        let endpoint = &self.config.endpoint;
        let mut config = tokio_postgres::Config::new();
        config
            .port(endpoint.port)
            .user(&endpoint.user)
            .dbname(database)
            .application_name(APPLICATION)
            .connect_timeout(CONNECT_TIMEOUT)
            .keepalives_idle(Duration::from_secs(30))
            .keepalives_interval(Duration::from_secs(10))
            .keepalives_retries(3)
            .tcp_user_timeout(Duration::from_secs(90));
        match &endpoint.host {
            PostgresHost::Tcp(host) => config.host(host),
            PostgresHost::Unix(folder) => config.host_path(folder),
        };
        if let Some(password) = &self.password {
            config.password(password.expose_secret());
        }
        let server = self.name();
        let ended = Arc::new(OnceLock::new());
        let tell = Arc::clone(&ended);
        let connecting = async {
            Ok(match self.tls()? {
                None => {
                    let (client, connection) = config
                        .ssl_mode(SslMode::Disable)
                        .connect(NoTls)
                        .await
                        .map_err(|e| self.failed(database, &e))?;
                    self.check_version(connection.parameter("server_version"))?;
                    (client, tokio::spawn(drive(connection, tell)))
                }
                Some(tls) => {
                    let (client, connection) =
                        config.ssl_mode(SslMode::Require).connect(tls).await.map_err(|e| self.failed(database, &e))?;
                    self.check_version(connection.parameter("server_version"))?;
                    (client, tokio::spawn(drive(connection, tell)))
                }
            })
        };
        let (client, driver) = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(connected) => connected?,
            Err(_) => {
                let detail = format!("no answer within {} s", CONNECT_TIMEOUT.as_secs());
                return Err(PostgresError::Unreachable { server, detail });
            }
        };
        Ok(Session { client, driver, ended, database: database.to_owned() })
    }

    /// Opens a connection for rows: the settings of [`row_settings`].
    pub(super) async fn connect_for_rows(&self, database: &str, settings: &[String]) -> Result<Session, PostgresError> {
        let session = self.connect(database).await?;
        session.batch_execute(&settings.join("; ")).await.map_err(query("pinning the settings of rows"))?;
        Ok(session)
    }

    /// Before the first statement: not even the settings of a session are the same in versions that are not supported.
    fn check_version(&self, told: Option<&str>) -> Result<(), PostgresError> {
        told.map_or(Ok(()), |version| catalog::check_version(self, version))
    }

    fn failed(&self, database: &str, error: &tokio_postgres::Error) -> PostgresError {
        let server = self.name();
        let detail = words(error);
        let whole = format!("{server} (database `{database}`, role `{}`)", self.config.endpoint.user);
        match error.code() {
            Some(&SqlState::INVALID_CATALOG_NAME) => {
                PostgresError::NoSuchDatabase { database: database.to_owned(), server }
            }
            Some(&SqlState::INVALID_PASSWORD | &SqlState::INVALID_AUTHORIZATION_SPECIFICATION) => {
                PostgresError::Login { server: whole, detail }
            }
            Some(&SqlState::INSUFFICIENT_PRIVILEGE) => PostgresError::Login { server: whole, detail },
            Some(_) => PostgresError::Unreachable { server: whole, detail },
            // tokio-postgres says so itself, without a code.
            None if detail.contains("password") => PostgresError::Login { server: whole, detail },
            None if detail.contains("TLS") || detail.contains("certificate") => PostgresError::Tls { server, detail },
            None => PostgresError::Unreachable { server, detail },
        }
    }

    fn tls(&self) -> Result<Option<MakeRustlsConnect>, PostgresError> {
        let failed = |detail: String| PostgresError::Tls { server: self.name(), detail };
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(error.to_string()))?;
        let config = match self.config.tls_mode() {
            TlsMode::Disable => return Ok(None),
            TlsMode::Require => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
                .with_no_client_auth(),
            TlsMode::VerifyFull => {
                let roots = roots(self.config.ca_file.as_deref()).map_err(failed)?;
                builder.with_root_certificates(roots).with_no_client_auth()
            }
        };
        Ok(Some(MakeRustlsConnect::new(config)))
    }
}

async fn drive<S, T>(connection: tokio_postgres::Connection<S, T>, ended: Arc<OnceLock<tokio_postgres::Error>>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    // Its end reaches whoever waits for an answer as "connection closed"; the cause is only known here.
    if let Err(error) = connection.await {
        tracing::debug!("a connection to PostgreSQL ended: {}", words(&error));
        let _ = ended.set(error);
    }
}

/// The certificates to trust: the file's, else the system's.
fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(path) => {
            let shown = path.display();
            for certificate in CertificateDer::pem_file_iter(path).map_err(|error| format!("{shown}: {error}"))? {
                let certificate = certificate.map_err(|error| format!("{shown}: {error}"))?;
                roots.add(certificate).map_err(|error| format!("{shown}: {error}"))?;
            }
            if roots.is_empty() {
                return Err(format!("{shown} holds no certificate"));
            }
        }
        None => {
            let (_, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err("this machine has no trusted certificates".into());
            }
        }
    }
    Ok(roots)
}

/// `tls = "require"`: encrypted, whoever it is. Signatures are checked, the certificate is not.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
