//! Throwaway servers that are given, called in this process: claimed, filled with a backup and compared, released.

use std::{path::Path, sync::Arc};

use altlas_backup::{
    config::{GivenServers, ScratchMode, SourceSettings},
    operation::{Error, OpenBackup, exit, open_backup},
    repository::Selector,
    source::{self, Identity, Proof, Source, SourceError},
};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::{nats::Nats, postgres::Postgres, redis::Redis, workspace::Workspace};

/// A server that `[scratch]` gives.
pub struct Given {
    source: Arc<dyn Source>,
    runtime: Runtime,
}

impl Given {
    /// This Redis.
    pub fn redis(server: &Redis) -> Self {
        Self::at("redis", &server.url(), &server.password_file())
    }

    /// This NATS.
    pub fn nats(server: &Nats) -> Self {
        Self::at("nats", &server.url_with_user(), &server.password_file())
    }

    /// This PostgreSQL.
    pub fn postgres(server: &Postgres) -> Self {
        Self::at("postgres", &server.url("postgres"), &server.password_file())
    }

    /// A server of that kind at any address.
    pub fn at(kind: &str, url: &str, password_file: &Path) -> Self {
        let mut workspace = Workspace::folder();
        workspace.set("scratch.mode", "given");
        workspace.set(&format!("scratch.{kind}_url"), url);
        workspace.set(&format!("scratch.{kind}_password_file"), password_file.display().to_string());
        let context = workspace.context();
        let ScratchMode::Given(given) = &context.config.scratch.mode else { panic!("it is given") };
        let GivenServers { postgres, redis, nats } = (**given).clone();
        let settings = postgres.map(SourceSettings::Postgres);
        let settings = settings.or(redis.map(SourceSettings::Redis)).or(nats.map(SourceSettings::Nats)).unwrap();
        let source = source::open(&settings, &*context.environment).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Self { source, runtime }
    }

    /// Who it is.
    #[track_caller]
    pub fn identity(&self) -> Identity {
        self.runtime.block_on(self.source.identity()).unwrap()
    }

    /// Takes it for a proof.
    pub fn claim(&self, others: &[Identity]) -> Result<(), SourceError> {
        self.runtime.block_on(self.source.claim(others))
    }

    /// It is not taken, and why is given; the program would end as one that refuses.
    #[track_caller]
    pub fn refused(&self, others: &[Identity]) -> String {
        match self.claim(others) {
            Ok(()) => panic!("it was claimed"),
            Err(error @ SourceError::Refused { .. }) => {
                let text = error.to_string();
                let error = Error::Source { name: "any".into(), error };
                assert_eq!(error.exit_code(), exit::REFUSED, "{error}");
                text
            }
            Err(error) => panic!("not refused: {error}"),
        }
    }

    /// Proves a backup of the workspace, of one source, by this server, which is claimed.
    pub fn prove_backup(&self, workspace: &Workspace, backup: &str) -> Result<Proof, SourceError> {
        let context = workspace.context();
        self.runtime.block_on(async {
            let selector: Selector = backup.parse().unwrap();
            let opened: OpenBackup = open_backup(&context, &selector, &[], |_, _| Ok(())).await.unwrap();
            self.source.prove(&opened.snapshots[0].snapshot, &CancellationToken::new()).await
        })
    }

    /// Claims it, and proves the newest backup of the workspace by it.
    pub fn prove(&self, workspace: &Workspace) -> Result<Proof, SourceError> {
        self.claim(&[])?;
        self.prove_backup(workspace, "latest")
    }

    /// The same; nothing differs, and something was compared.
    #[track_caller]
    pub fn proved(&self, workspace: &Workspace) -> Proof {
        let proof = self.prove(workspace).unwrap();
        assert_eq!(proof.differences, [], "{proof:?}");
        assert_eq!(proof.not_comparable, Vec::<String>::new());
        assert!(!proof.same.is_empty(), "{proof:?}");
        proof
    }

    /// Gives it back.
    #[track_caller]
    pub fn release(&self) {
        self.runtime.block_on(self.source.release()).unwrap();
    }
}

/// What a proof found different, as a person reads it.
pub fn words(proof: &Proof) -> Vec<String> {
    proof.differences.iter().map(|difference| format!("{} {}", difference.object, difference.what)).collect()
}
