//! A throwaway PostgreSQL.

use std::{
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::Signal;

use super::{
    Scratch, ScratchError,
    folder::{Folder, PREFIX},
    process::{self, Run, Server, User},
    program::{self, Found},
};
use crate::{
    config::{PasswordSource, PostgresConfig, PostgresEndpoint, PostgresHost, ScratchConfig, SourceSettings},
    source::Wanted,
};

const PROGRAM: &str = "postgres";
/// The number in the socket's name; the folder is nobody else's.
const PORT: u16 = 5432;
const STARTS: Duration = Duration::from_secs(120);
/// How long `initdb` may take.
const INITIALISES: Duration = Duration::from_secs(300);
/// Users that are there for nothing, the likeliest first.
const USERS: [&str; 2] = ["altlas-scratch", "nobody"];

/// Nothing in it outlives the proof, nobody but we connect, and one that is killed must leave nothing behind outside of its folder.
const SETTINGS: &str = "
listen_addresses = ''
unix_socket_permissions = 0777
fsync = off
full_page_writes = off
synchronous_commit = off
wal_level = minimal
max_wal_senders = 0
autovacuum = off
archive_mode = off
checkpoint_timeout = '1h'
max_wal_size = '1GB'
shared_buffers = '64MB'
maintenance_work_mem = '64MB'
dynamic_shared_memory_type = mmap
max_connections = 40
max_locks_per_transaction = 1024
max_prepared_transactions = 0
max_logical_replication_workers = 0
jit = off
logging_collector = off
log_min_messages = warning
log_statement = none
timezone = 'UTC'
log_timezone = 'UTC'
";

pub(super) async fn start(wanted: &Wanted, config: &ScratchConfig, base: &Path) -> Result<Scratch, ScratchError> {
    let bin = find(wanted, config).await?;
    let user = run_as(config)?;
    // Indexes and what is written ahead take room too, how much nobody knows before.
    let folder = Folder::make(base, wanted.bytes)?;
    let (data, socket) = (folder.path().join("data"), folder.path().join("socket"));
    let failed =
        |error: std::io::Error| ScratchError::Folder { folder: folder.path().to_owned(), detail: error.to_string() };
    for place in [&data, &socket] {
        fs::create_dir(place).map_err(failed)?;
        fs::set_permissions(place, fs::Permissions::from_mode(0o700)).map_err(failed)?;
        if let Some(user) = &user {
            chown(place, Some(user.uid), Some(user.gid)).map_err(failed)?;
        }
    }
    let superuser = wanted.superuser.clone().unwrap_or_else(|| "postgres".to_owned());
    initialise(&bin, &data, &superuser, user.as_ref()).await?;
    let mut settings = fs::File::options().append(true).open(data.join("postgresql.conf")).map_err(failed)?;
    settings.write_all(SETTINGS.as_bytes()).map_err(failed)?;
    let shown = |path: &Path| path.display().to_string();
    let mut server = Server::start(
        &folder,
        Run {
            name: PROGRAM,
            program: &bin.join(PROGRAM),
            arguments: vec!["-D".into(), shown(&data), "-k".into(), shown(&socket), "-p".into(), PORT.to_string()],
            user: user.as_ref(),
            ends_by: Signal::QUIT,
        },
    )?;
    // Line 8 of the file is the server's state, as pg_ctl reads it.
    let pid_file = data.join("postmaster.pid");
    let state = || fs::read_to_string(&pid_file).unwrap_or_default().lines().nth(7).map(str::trim) == Some("ready");
    server.wait(STARTS, state).await?;
    let endpoint = PostgresEndpoint {
        host: PostgresHost::Unix(socket),
        port: PORT,
        user: superuser,
        database: "postgres".to_owned(),
    };
    let mut settings = PostgresConfig::scratch(endpoint, PasswordSource::Nothing);
    settings.tools_dir.clone_from(&wanted.tools_dir);
    settings.is_own = true;
    Ok(Scratch { settings: SourceSettings::Postgres(settings), _server: server, _folder: folder })
}

/// The folder with `initdb` and `postgres` of the snapshot's own major version.
async fn find(wanted: &Wanted, config: &ScratchConfig) -> Result<PathBuf, ScratchError> {
    let major = wanted.version.0;
    let places = match &config.postgres_bin {
        Some(folder) => vec![folder.join(PROGRAM)],
        None => [format!("/usr/lib/postgresql/{major}/bin"), format!("/usr/pgsql-{major}/bin")]
            .into_iter()
            .map(|folder| PathBuf::from(folder).join(PROGRAM))
            .filter(|path| path.exists())
            .chain(program::places(PROGRAM, None))
            .collect(),
    };
    let (found, looked) = program::look(places).await;
    let fits = |found: &&Found| found.version.0 == major && found.path.with_file_name("initdb").exists();
    let folder = found.iter().find(fits).and_then(|found| found.path.parent()).map(Path::to_owned);
    folder.ok_or_else(|| ScratchError::NoProgram { program: PROGRAM, wanted: format!("PostgreSQL {major}"), looked })
}

/// As whom the server runs: somebody who owns no live data directory. Where we are not root, that can only be ourselves.
fn run_as(config: &ScratchConfig) -> Result<Option<User>, ScratchError> {
    let own = rustix::process::geteuid().as_raw();
    if own != 0 {
        let name = std::env::var("USER").unwrap_or_else(|_| format!("user {own}"));
        return match other_server(own) {
            Some(process) if !config.allow_shared_user => Err(ScratchError::SharedUser { user: name, process }),
            _ => Ok(None),
        };
    }
    let user = match &config.postgres_user {
        Some(name) => process::user(name).ok_or_else(|| ScratchError::NoUser { user: name.clone() })?,
        None => USERS
            .iter()
            .find_map(|name| process::user(name))
            .ok_or_else(|| ScratchError::NoUser { user: USERS[1].to_owned() })?,
    };
    match other_server(user.uid) {
        Some(process) if !config.allow_shared_user => Err(ScratchError::SharedUser { user: user.name, process }),
        _ => Ok(Some(user)),
    }
}

/// A PostgreSQL that this user runs and that is no throwaway one: such a server's working folder is its data directory.
fn other_server(uid: u32) -> Option<u32> {
    let entries = fs::read_dir("/proc").ok()?;
    entries.flatten().find_map(|entry| {
        let process: u32 = entry.file_name().to_str()?.parse().ok()?;
        let theirs = fs::metadata(entry.path()).ok()?.uid() == uid;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        if !theirs || !matches!(name.trim(), "postgres" | "postmaster") {
            return None;
        }
        let folder = fs::read_link(entry.path().join("cwd")).ok()?;
        let ours = folder.components().any(|part| part.as_os_str().to_string_lossy().starts_with(PREFIX));
        (!ours).then_some(process)
    })
}

async fn initialise(bin: &Path, data: &Path, superuser: &str, user: Option<&User>) -> Result<(), ScratchError> {
    let failed = |detail: String| ScratchError::Start { program: "initdb", detail };
    let mut command = process::command(&bin.join("initdb"), user, Some("KILL"));
    command
        .args(["--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C"])
        .arg(format!("--username={superuser}"))
        .arg("--pgdata")
        .arg(data)
        // Where another verification, which looks for live servers of this user, sees whose it is.
        .current_dir(data);
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    let output = match tokio::time::timeout(INITIALISES, command.output()).await {
        Ok(output) => output.map_err(|error| failed(error.to_string()))?,
        Err(_) => return Err(failed(format!("it takes longer than {} s", INITIALISES.as_secs()))),
    };
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(failed(words))
}
