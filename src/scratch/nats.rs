//! A throwaway NATS with JetStream.

use std::{fs, io::Write, os::unix::fs::OpenOptionsExt, path::Path, time::Duration};

use rustix::process::Signal;

use super::{
    Scratch, ScratchError,
    folder::Folder,
    process::{self, Run, Server},
    program,
};
use crate::{
    config::{NatsConfig, PasswordSource, ScratchConfig, SourceSettings},
    source::Wanted,
};

const PROGRAM: &str = "nats-server";
const USER: &str = "altlas-backup";
const STARTS: Duration = Duration::from_secs(60);
/// Somebody else may take the port that was free.
const ATTEMPTS: u32 = 5;
/// The most that a server takes for a message, in bytes.
const MAX_PAYLOAD: u64 = 64 * 1024 * 1024;
/// Room beside what the archives hold: a stream's files, and its snapshot's.
const ROOM: u64 = 3;

pub(super) async fn start(wanted: &Wanted, config: &ScratchConfig, base: &Path) -> Result<Scratch, ScratchError> {
    let (found, looked) = program::look(program::places(PROGRAM, config.nats_server.as_deref())).await;
    let Some(found) = program::nearest(&found, wanted.version) else {
        return Err(ScratchError::NoProgram { program: PROGRAM, wanted: wanted.shown.clone(), looked });
    };
    let folder = Folder::make(base, wanted.bytes)?;
    let failed =
        |error: std::io::Error| ScratchError::Folder { folder: folder.path().to_owned(), detail: error.to_string() };
    let password = process::password();
    let room = wanted.bytes.saturating_mul(ROOM).max(1 << 30);
    let mut attempt = 0;
    loop {
        attempt += 1;
        let port = process::free_port().map_err(failed)?;
        let path = folder.path().join("nats.conf");
        let text = format!(
            "listen: \"127.0.0.1:{port}\"\nserver_name: altlas-backup-throwaway\nmax_payload: {MAX_PAYLOAD}\n\
             authorization {{ user: \"{USER}\", password: \"{password}\" }}\n\
             jetstream {{ store_dir: \"{}\", max_memory_store: {room}, max_file_store: {room} }}\n",
            folder.path().join("data").display()
        );
        let mut file =
            fs::File::options().create(true).write(true).truncate(true).mode(0o600).open(&path).map_err(failed)?;
        file.write_all(text.as_bytes()).map_err(failed)?;
        let run = Run {
            name: PROGRAM,
            program: &found.path,
            arguments: vec!["--config".into(), path.display().to_string()],
            user: None,
            ends_by: Signal::KILL,
        };
        let mut server = Server::start(&folder, run)?;
        let log = server.log();
        match server.wait(STARTS, || log("Server is ready")).await {
            Ok(()) => {
                let settings = NatsConfig::local(port, USER, PasswordSource::Given(password.into()));
                return Ok(Scratch { settings: SourceSettings::Nats(settings), _server: server, _folder: folder });
            }
            Err(error) if attempt == ATTEMPTS || server.runs() => return Err(error),
            Err(error) => tracing::debug!("{error}; trying another port"),
        }
    }
}
