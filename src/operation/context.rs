//! What every operation needs: configuration, secrets, cancellation, counters.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::Error;
use crate::{
    config::{Config, ConfigError, RepositoryUrl, SourceConfig},
    pipeline::{Budget, Progress},
    repository::{Keyring, Repository, RepositoryError},
    source::{self, Source},
    store::{FileBackend, RetryPolicy, S3Backend, S3Options, SharedBackend, Store, StoreError, StoreErrorKind},
};

/// How long a connection to an S3 server may take to be made.
const S3_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads environment variables.
pub type Environment = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// What every operation needs. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// The configuration.
    pub config: Arc<Config>,
    /// The environment, for secrets.
    pub environment: Environment,
    /// Cancelled by the first signal.
    pub cancel: CancellationToken,
    /// Counters for whoever shows them.
    pub progress: Arc<Progress>,
}

impl Context {
    /// The configured store.
    ///
    /// # Errors
    /// A configuration or secret that cannot work; no connection is made yet.
    pub fn store(&self) -> Result<Store, Error> {
        let backend: SharedBackend = match &self.config.repository.url {
            RepositoryUrl::File { path } => Arc::new(FileBackend::open(path)?),
            RepositoryUrl::S3 { bucket, prefix } => Arc::new(self.s3(bucket, prefix)?),
        };
        Ok(Store::new(backend, RetryPolicy::default()))
    }

    fn s3(&self, bucket: &str, prefix: &str) -> Result<S3Backend, Error> {
        let s3 = &self.config.repository.s3;
        let credentials = s3.credentials(&*self.environment)?;
        let ca_pem = match &s3.ca_file {
            None => None,
            Some(path) => Some(std::fs::read(path).map_err(|error| {
                StoreError::new(StoreErrorKind::Invalid, "open", path.display().to_string(), error.to_string())
            })?),
        };
        Ok(S3Backend::connect(S3Options {
            endpoint: s3.endpoint.as_ref().map(ToString::to_string),
            region: s3.region.clone(),
            path_style: s3.path_style,
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            access_key_id: credentials.access_key_id,
            secret_access_key: credentials.secret_access_key,
            session_token: credentials.session_token,
            ca_pem,
            connect_timeout: S3_CONNECT_TIMEOUT,
        })?)
    }

    /// Creates the folder of a folder store; nothing else ever does.
    pub(super) async fn create_folder(&self) -> Result<(), Error> {
        if let RepositoryUrl::File { path } = &self.config.repository.url {
            FileBackend::open(path)?.create_root().await?;
        }
        Ok(())
    }

    /// The keys of this machine.
    ///
    /// # Errors
    /// An identity that cannot be read.
    pub fn keyring(&self) -> Result<Keyring, Error> {
        let Some(encryption) = &self.config.repository.encryption else { return Ok(Keyring::default()) };
        let held = encryption.identities(&*self.environment)?;
        let (recipients, known) = (encryption.recipients.clone(), encryption.catalog_recipients.clone());
        Ok(Keyring::new(recipients, known, held.catalog, held.data))
    }

    /// The configured repository.
    ///
    /// # Errors
    /// What keeps it from being opened; an encrypted one needs an identity.
    pub async fn repository(&self) -> Result<Repository, Error> {
        let keyring = self.keyring()?;
        if keyring.encrypts() && keyring.is_empty() {
            return Err(ConfigError::NoIdentity { file: self.config.origin.clone() }.into());
        }
        self.expected(Repository::open(self.store()?, keyring).await?)
    }

    /// The repository, if it is the one that the configuration means.
    pub(super) fn expected(&self, repository: Repository) -> Result<Repository, Error> {
        let found = &repository.mark().repository;
        match &self.config.repository.id {
            Some(wanted) if wanted != found.as_str() => Err(RepositoryError::Another {
                url: repository.store().url().to_owned(),
                found: found.clone(),
                wanted: wanted.clone(),
            }
            .into()),
            _ => Ok(repository),
        }
    }

    /// The memory budget of one run.
    pub fn budget(&self) -> Budget {
        Budget::new(u64::from(self.config.limits.memory_mib) * 1024 * 1024)
    }

    /// A configured source, with its secrets read.
    ///
    /// # Errors
    /// A secret that cannot be read.
    pub fn source(&self, config: &SourceConfig) -> Result<Arc<dyn Source>, Error> {
        Ok(source::open(&config.settings, &*self.environment)?)
    }
}
