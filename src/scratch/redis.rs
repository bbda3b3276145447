//! A throwaway Redis.

use std::{fs, io::Write, os::unix::fs::OpenOptionsExt, path::Path, time::Duration};

use rustix::process::Signal;

use super::{
    Scratch, ScratchError,
    folder::Folder,
    process::{self, Run, Server},
    program,
};
use crate::{
    config::{PasswordSource, RedisConfig, ScratchConfig, SourceSettings},
    source::Wanted,
};

const PROGRAM: &str = "redis-server";
const STARTS: Duration = Duration::from_secs(60);
/// Somebody else may take the port that was free.
const ATTEMPTS: u32 = 5;
/// Databases of a server that is not told otherwise.
const DATABASES: u64 = 16;

pub(super) async fn start(wanted: &Wanted, config: &ScratchConfig, base: &Path) -> Result<Scratch, ScratchError> {
    let (found, looked) = program::look(program::places(PROGRAM, config.redis_server.as_deref())).await;
    let Some(found) = program::nearest(&found, wanted.version) else {
        return Err(ScratchError::NoProgram { program: PROGRAM, wanted: wanted.shown.clone(), looked });
    };
    // The dump is received into a file before it is loaded.
    let folder = Folder::make(base, wanted.bytes)?;
    let failed =
        |error: std::io::Error| ScratchError::Folder { folder: folder.path().to_owned(), detail: error.to_string() };
    let password = process::password();
    let mut attempt = 0;
    loop {
        attempt += 1;
        let port = process::free_port().map_err(failed)?;
        let path = folder.path().join("redis.conf");
        let databases = DATABASES.max(wanted.databases);
        let text = format!(
            "bind 127.0.0.1\nport {port}\nrequirepass {password}\nprotected-mode yes\ndir \"{}\"\nsave \"\"\nappendonly no\n\
             databases {databases}\nmaxmemory 0\nrepl-diskless-sync yes\nrepl-diskless-sync-delay 0\n\
             client-output-buffer-limit replica 0 0 0\ndaemonize no\nlogfile \"\"\n",
            folder.path().display()
        );
        let mut file =
            fs::File::options().create(true).write(true).truncate(true).mode(0o600).open(&path).map_err(failed)?;
        file.write_all(text.as_bytes()).map_err(failed)?;
        let run = Run {
            name: PROGRAM,
            program: &found.path,
            arguments: vec![path.display().to_string()],
            user: None,
            ends_by: Signal::KILL,
        };
        let mut server = Server::start(&folder, run)?;
        let log = server.log();
        match server.wait(STARTS, || log("Ready to accept connections")).await {
            Ok(()) => {
                let settings = RedisConfig::local(port, PasswordSource::Given(password.into()));
                return Ok(Scratch { settings: SourceSettings::Redis(settings), _server: server, _folder: folder });
            }
            Err(error) if attempt == ATTEMPTS || server.runs() => return Err(error),
            Err(error) => tracing::debug!("{error}; trying another port"),
        }
    }
}
