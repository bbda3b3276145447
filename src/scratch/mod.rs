//! Throwaway servers: started from programs of this machine, for one proof, and gone afterwards.
//!
//! Each has a folder of its own and listens on a unix socket in it (PostgreSQL) or on a free port of 127.0.0.1 with a password that nobody
//! else knows (Redis, NATS). It is tuned for speed: nothing in it outlives the proof. Dropping [`Scratch`] ends the server and removes
//! the folder; a process that is killed takes its servers with it (`setpriv --pdeathsig`), and what is left of it is found by the next
//! one (`folder`).
//!
//! PostgreSQL runs as an operating system's user that owns no live data directory: a dump is a program, and it runs with that user's
//! rights. This module must not know what a snapshot is: it is told which version is wanted.

mod error;
mod folder;
mod nats;
mod postgres;
mod process;
mod program;
mod redis;

use crate::{
    config::{ScratchConfig, SourceSettings},
    source::{Wanted, nats as nats_source, postgres as postgres_source, redis as redis_source},
};

pub use self::error::ScratchError;
use self::{folder::Folder, process::Server};

/// A running throwaway server.
pub struct Scratch {
    /// How it is reached.
    pub settings: SourceSettings,
    // Ended before its folder is removed: fields are dropped in their order.
    _server: Server,
    _folder: Folder,
}

/// Starts a server of that kind for what is `wanted`, and waits until it answers.
///
/// # Errors
/// No program of the wanted version, no room, a server that does not start.
pub async fn start(kind: &str, wanted: &Wanted, config: &ScratchConfig) -> Result<Scratch, ScratchError> {
    let base = config.folder.clone().unwrap_or_else(std::env::temp_dir);
    folder::remove_leftovers(&base).await;
    match kind {
        postgres_source::KIND => postgres::start(wanted, config, &base).await,
        redis_source::KIND => redis::start(wanted, config, &base).await,
        nats_source::KIND => nats::start(wanted, config, &base).await,
        _ => Err(ScratchError::UnknownKind { kind: kind.to_owned() }),
    }
}
