//! PostgreSQL's own programs: found by major version, run without a shell, judged by their exit status.
//!
//! The password reaches them through a file that exists only in memory: not in an argument, not in the environment, not on a disk.

use std::{
    collections::VecDeque,
    ffi::OsString,
    io::Write,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use rustix::fs::{MemfdFlags, Mode};
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStderr, Command},
    task::JoinHandle,
};

use super::{
    connect::Server,
    error::PostgresError,
    words::{first_state, psql_words},
};
use crate::{
    config::{PostgresHost, TlsMode},
    pipeline::ArtifactWriter,
    source::SourceError,
};

/// How much of a program's stderr is kept: its end, and of each line the beginning, so that a long one does not push out all else.
const STDERR_KEPT: usize = 4096;
const LINE_KEPT: usize = 1024;
/// Where Debian and others keep the system's certificates; `libpq` before 16 has no word for them.
const SYSTEM_CERTIFICATES: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];
/// Majors that `psql` is looked for, newest first.
const MAJORS: std::ops::RangeInclusive<u32> = 14..=18;

/// The folder of the programs of one major version.
#[derive(Clone, Debug)]
pub(super) struct Tools {
    folder: PathBuf,
    /// As `pg_dump` or `psql` prints it: `15.18`.
    pub(super) version: String,
}

/// Folders that may hold the programs of `major`, the likeliest first.
fn folders(tools_dir: Option<&Path>, major: u32) -> Vec<PathBuf> {
    if let Some(folder) = tools_dir {
        return vec![folder.to_owned()];
    }
    let mut folders = vec![
        PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")),
        PathBuf::from(format!("/usr/pgsql-{major}/bin")),
    ];
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    folders.dedup();
    folders
}

/// `15.18` of `pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
fn version_in(text: &str) -> Option<(u32, String)> {
    let version = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    Some((digits.parse().ok()?, version.to_owned()))
}

/// A program with the environment that every one of them gets: ours may hold secrets.
fn clean(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("LC_ALL", "C.UTF-8");
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn version_of(path: &Path) -> Option<(u32, String)> {
    let run = clean(path).arg("--version").output();
    let output = tokio::time::timeout(std::time::Duration::from_secs(20), run).await.ok()?.ok()?;
    version_in(&String::from_utf8_lossy(&output.stdout))
}

impl Tools {
    /// The folder whose `program` is of that major version.
    pub(super) async fn find(
        tools_dir: Option<&Path>,
        program: &'static str,
        major: u32,
    ) -> Result<Self, PostgresError> {
        let folders = folders(tools_dir, major);
        let mut other = None;
        for folder in &folders {
            let path = folder.join(program);
            if let Some((found, version)) = version_of(&path).await {
                if found == major {
                    return Ok(Self { folder: folder.clone(), version });
                }
                other.get_or_insert((path, version));
            }
        }
        Err(match other {
            Some((path, found)) => {
                PostgresError::WrongProgram { path: path.display().to_string(), found, wanted: major }
            }
            None => {
                let looked = folders.iter().map(|folder| folder.display().to_string()).collect();
                PostgresError::NoProgram { program, major, looked }
            }
        })
    }

    /// `psql` of the target's major version, or of the nearest newer or else older one: it only passes statements on.
    pub(super) async fn find_psql(tools_dir: Option<&Path>, major: u32) -> Result<Self, PostgresError> {
        let mut failure = None;
        let newer = (major..=*MAJORS.end()).chain((*MAJORS.start()..major).rev());
        for candidate in newer {
            match Self::find(tools_dir, "psql", candidate).await {
                Ok(tools) => return Ok(tools),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        Err(failure.unwrap_or(PostgresError::NoProgram { program: "psql", major, looked: Vec::new() }))
    }

    /// Does this `pg_dump` take a key for `\\restrict`?
    pub(super) async fn knows_restrict_key(&self) -> Result<bool, PostgresError> {
        let failed = |error: std::io::Error| PostgresError::Run { program: "pg_dump", detail: error.to_string() };
        let output = clean(&self.folder.join("pg_dump")).arg("--help").output().await.map_err(failed)?;
        Ok(String::from_utf8_lossy(&output.stdout).contains("--restrict-key"))
    }

    /// A command on one database of `server`. The environment is what is set here and nothing else.
    pub(super) fn command(
        &self,
        program: &'static str,
        server: &Server,
        database: &str,
    ) -> Result<Program, PostgresError> {
        let run_failed = |detail: String| PostgresError::Run { program, detail };
        let endpoint = &server.config.endpoint;
        let mut command = clean(&self.folder.join(program));
        let host: OsString = match &endpoint.host {
            PostgresHost::Tcp(host) => host.into(),
            PostgresHost::Unix(folder) => folder.into(),
        };
        command
            .env("PGHOST", host)
            .env("PGPORT", endpoint.port.to_string())
            .env("PGUSER", &endpoint.user)
            .env("PGDATABASE", database)
            .env("PGAPPNAME", "altlas-backup")
            .env("PGCONNECT_TIMEOUT", "20")
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        match server.config.tls_mode() {
            TlsMode::Disable => command.env("PGSSLMODE", "disable"),
            TlsMode::Require => command.env("PGSSLMODE", "require"),
            TlsMode::VerifyFull => {
                let given = server.config.ca_file.clone();
                let found = given.or_else(|| SYSTEM_CERTIFICATES.iter().map(PathBuf::from).find(|path| path.exists()));
                if let Some(path) = found {
                    command.env("PGSSLROOTCERT", path);
                }
                command.env("PGSSLMODE", "verify-full")
            }
        };
        let passfile = match server.password() {
            Some(password) => {
                let passfile = passfile(password).map_err(|error| run_failed(error.to_string()))?;
                command.env("PGPASSFILE", format!("/proc/self/fd/{}", passfile.as_raw_fd()));
                Some(passfile)
            }
            None => None,
        };
        Ok(Program { name: program, command, _passfile: passfile })
    }
}

/// A password file in memory that children inherit. libpq wants a regular file that only its owner may read.
fn passfile(password: &SecretString) -> std::io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("passfile", MemfdFlags::empty())?;
    rustix::fs::fchmod(&fd, Mode::RUSR | Mode::WUSR)?;
    let mut file = std::fs::File::from(fd);
    let escaped = password.expose_secret().replace('\\', "\\\\").replace(':', "\\:");
    writeln!(file, "*:*:*:*:{escaped}")?;
    Ok(file.into())
}

/// A program about to run.
pub(super) struct Program {
    name: &'static str,
    command: Command,
    _passfile: Option<OwnedFd>,
}

impl Program {
    pub(super) fn args<S: AsRef<std::ffi::OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    pub(super) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    fn spawn(&mut self) -> Result<(Child, JoinHandle<String>), PostgresError> {
        let failed = |detail: String| PostgresError::Run { program: self.name, detail };
        let mut child = self.command.spawn().map_err(|error| failed(error.to_string()))?;
        let stderr = child.stderr.take().ok_or_else(|| failed("it has no stderr".into()))?;
        Ok((child, tokio::spawn(last_words(stderr))))
    }

    fn run_error(&self, error: &std::io::Error) -> PostgresError {
        PostgresError::Run { program: self.name, detail: error.to_string() }
    }

    async fn ended(&self, what: &str, status: ExitStatus, stderr: JoinHandle<String>) -> Result<(), PostgresError> {
        let stderr = stderr.await.unwrap_or_default();
        let state = first_state(&stderr);
        // Only it is fed with rows: what it may repeat of them has no place in our logs.
        let stderr = if self.name == "psql" { psql_words(&stderr) } else { stderr };
        if status.success() {
            if !stderr.is_empty() {
                tracing::warn!("{} for {what}: {stderr}", self.name);
            }
            return Ok(());
        }
        let stderr = if stderr.is_empty() { "it said nothing".to_owned() } else { stderr };
        let (what, status) = (what.to_owned(), status.to_string());
        Err(PostgresError::Program { program: self.name, what, status, stderr, state })
    }

    /// Runs it; what it prints goes into `writer`. Only an exit status of 0 makes the artifact complete.
    pub(super) async fn run_into(mut self, what: &str, writer: &mut ArtifactWriter<'_>) -> Result<(), SourceError> {
        self.command.stdout(Stdio::piped());
        let (mut child, stderr) = self.spawn()?;
        if let Some(mut stdout) = child.stdout.take() {
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let n = stdout.read(&mut buffer).await.map_err(|error| self.run_error(&error))?;
                if n == 0 {
                    break;
                }
                writer.write(&buffer[..n]).await?;
            }
        }
        let status = child.wait().await.map_err(|error| self.run_error(&error))?;
        Ok(self.ended(what, status, stderr).await?)
    }

    /// Runs it and returns what it prints, at most `most` bytes.
    pub(super) async fn output(mut self, what: &str, most: u64) -> Result<Vec<u8>, PostgresError> {
        self.command.stdout(Stdio::piped());
        let (mut child, stderr) = self.spawn()?;
        let mut printed = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(most + 1).read_to_end(&mut printed).await.map_err(|error| self.run_error(&error))?;
        }
        if printed.len() as u64 > most {
            return Err(PostgresError::Run {
                program: self.name,
                detail: format!("it printed more than {most} bytes"),
            });
        }
        let status = child.wait().await.map_err(|error| self.run_error(&error))?;
        self.ended(what, status, stderr).await?;
        Ok(printed)
    }

    /// Starts it with a pipe to its stdin.
    pub(super) fn feed(mut self, what: &str) -> Result<Fed, PostgresError> {
        self.command.stdin(Stdio::piped());
        let (child, stderr) = self.spawn()?;
        Ok(Fed { program: self, child, stderr, what: what.to_owned() })
    }
}

/// A running program that takes its input from us.
pub(super) struct Fed {
    program: Program,
    child: Child,
    stderr: JoinHandle<String>,
    what: String,
}

impl Fed {
    /// Writes some input; a program that has ended already is found out by [`Fed::finish`].
    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), PostgresError> {
        let Some(stdin) = &mut self.child.stdin else { return Ok(()) };
        match stdin.write_all(bytes).await {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(self.program.run_error(&error)),
            _ => Ok(()),
        }
    }

    /// Ends the input and waits for the program.
    pub(super) async fn finish(mut self) -> Result<(), PostgresError> {
        drop(self.child.stdin.take());
        let status = self.child.wait().await.map_err(|error| self.program.run_error(&error))?;
        self.program.ended(&self.what, status, self.stderr).await
    }
}

/// Reads stderr to its end and keeps the last of it.
async fn last_words(mut stderr: ChildStderr) -> String {
    let mut kept: VecDeque<u8> = VecDeque::new();
    let mut buffer = [0; 4096];
    let mut line = 0;
    while let Ok(n @ 1..) = stderr.read(&mut buffer).await {
        for byte in &buffer[..n] {
            line = if *byte == b'\n' { 0 } else { line + 1 };
            if line <= LINE_KEPT {
                kept.push_back(*byte);
            }
        }
        let surplus = kept.len().saturating_sub(STDERR_KEPT);
        kept.drain(..surplus);
    }
    let bytes: Vec<u8> = kept.into();
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_programs_print() {
        for (text, major, version) in [
            ("pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", 15, "15.18"),
            ("psql (PostgreSQL) 18beta1", 18, "18beta1"),
            ("pg_dump (PostgreSQL) 9.6.24", 9, "9.6.24"),
        ] {
            assert_eq!(version_in(text), Some((major, version.to_owned())));
        }
        assert_eq!(version_in("no version"), None);
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named_with_where_it_was_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let error = Tools::find(Some(folder.path()), "pg_dump", 15).await.unwrap_err();
        assert!(matches!(&error, PostgresError::NoProgram { looked, .. } if looked.len() == 1), "{error}");
    }
}
