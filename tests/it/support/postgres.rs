//! Throwaway PostgreSQL servers.
//!
//! Each has a folder of its own below `/tmp`, listens on a free port of 127.0.0.1 and on a unix socket in that folder,
//! asks for a password everywhere, and is stopped and removed when dropped. Durability is off: they never see a crash
//! of the machine that matters.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::Duration,
};

use rustix::process::Signal;
use tempfile::TempDir;

use super::{fixture, process, temp_folder, tools, wait_for};

/// A PostgreSQL major version that the tests can start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Major {
    /// Too old for the program under test.
    V13,
    /// Debian 12's.
    V15,
    /// The newest.
    V18,
}

/// The password of `postgres` in a fresh template; replaced by a random one before anybody else connects.
const TEMPLATE_PASSWORD: &str = "template";

const SETTINGS: &str = "
listen_addresses = '127.0.0.1'
fsync = off
full_page_writes = off
shared_buffers = 32MB
max_connections = 100
max_prepared_transactions = 5
max_locks_per_transaction = 128
wal_level = logical
max_wal_senders = 5
max_replication_slots = 5
timezone = 'UTC'
log_timezone = 'UTC'
";

/// A running server. Its superuser is `postgres`.
#[derive(Debug)]
pub struct Postgres {
    major: Major,
    port: u16,
    password: String,
    server: Option<Child>,
    folder: TempDir,
}

impl Postgres {
    /// Starts an empty server.
    pub fn start(major: Major) -> Self {
        Self::start_with(major, "")
    }

    /// Starts an empty server with more lines for its `postgresql.conf`.
    pub fn start_with(major: Major, settings: &str) -> Self {
        let folder = temp_folder();
        copy(&template(major), &folder.path().join("data"));
        Self::start_in(major, folder, settings)
    }

    /// Starts an empty server with a system identifier of its own: all others of its version are copies of one template, and so of each other.
    pub fn start_unrelated(major: Major) -> Self {
        let folder = temp_folder();
        initialize(major, folder.path());
        Self::start_in(major, folder, "")
    }

    fn start_in(major: Major, folder: TempDir, settings: &str) -> Self {
        let socket = folder.path().join("s");
        fs::create_dir(&socket).unwrap();
        give_to_postgres(&socket);
        append(&folder.path().join("data/postgresql.conf"), &format!("{SETTINGS}{settings}\n"));

        let password = format!("pw-{:016x}", rand::random::<u64>());
        let mut postgres = Self { major, port: 0, password: TEMPLATE_PASSWORD.into(), server: None, folder };
        postgres.resume();
        postgres.psql("postgres", &format!("ALTER ROLE postgres PASSWORD '{password}'"));
        postgres.password = password;
        let file = postgres.password_file();
        fs::write(&file, format!("{}\n", postgres.password)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        postgres
    }

    /// Starts a standby of this server: a copy by `pg_basebackup`, which replays what it writes.
    pub fn standby(&self) -> Self {
        let folder = temp_folder();
        for name in ["data", "s"] {
            fs::create_dir(folder.path().join(name)).unwrap();
            give_to_postgres(&folder.path().join(name));
        }
        let data = folder.path().join("data");
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();
        let mut copying = process::bound_command(&tools::server_program(self.major, "pg_basebackup"), true);
        copying.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "postgres", "-c", "fast", "-R", "-D"]);
        let output = copying.arg(&data).env("PGPASSWORD", &self.password).output().expect("setpriv can be started");
        assert!(output.status.success(), "pg_basebackup failed: {}", String::from_utf8_lossy(&output.stderr));
        let mut standby = Self { major: self.major, port: 0, password: self.password.clone(), server: None, folder };
        fs::copy(self.password_file(), standby.password_file()).unwrap();
        standby.resume();
        standby
    }

    /// Starts the server again after [`Postgres::stop`]: the same data, on the port it had if that is still free.
    pub fn resume(&mut self) {
        assert!(self.server.is_none(), "the server runs");
        for _ in 0..5 {
            if self.port == 0 || std::net::TcpListener::bind(("127.0.0.1", self.port)).is_err() {
                self.port = super::free_port();
            }
            let log = fs::File::options().create(true).append(true).open(self.log_file()).unwrap();
            let mut command = process::bound_command(&tools::server_program(self.major, "postgres"), true);
            command.arg("-D").arg(self.folder.path().join("data"));
            command.arg("-k").arg(self.socket_folder()).args(["-p", &self.port.to_string()]);
            command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
            let mut server = process::spawn(command).expect("setpriv can be started");
            let ready = wait_for("PostgreSQL to accept connections", Duration::from_secs(60), || {
                if server.try_wait().unwrap().is_some() {
                    return Some(false);
                }
                // Line 8 of the file is the server's state, as pg_ctl reads it.
                let pid_file = fs::read_to_string(self.folder.path().join("data/postmaster.pid")).ok()?;
                matches!(pid_file.lines().nth(7)?.trim(), "ready" | "standby").then_some(true)
            });
            if ready {
                self.server = Some(server);
                return;
            }
            // Somebody else may have taken the port between our look and the server's.
            self.port = 0;
        }
        panic!("PostgreSQL does not start; its log:\n{}", self.log());
    }

    /// Ends the server at once, as `pg_ctl stop -m immediate` does; what was committed stays for [`Postgres::resume`].
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            process::stop(&mut server, Signal::QUIT, Duration::from_secs(10));
        }
    }

    /// The server's major version.
    pub fn major(&self) -> Major {
        self.major
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of the unix socket.
    pub fn socket_folder(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    /// The superuser's password.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// A file that holds the superuser's password and a newline.
    pub fn password_file(&self) -> PathBuf {
        self.folder.path().join("password")
    }

    /// The superuser's connection URL of a database, without the password.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// What the server has logged so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_file()).unwrap_or_default()).into_owned()
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// A `psql` command as the superuser: no start-up file, stops at the first error, rows only, columns parted by `|`.
    pub fn psql_command(&self, database: &str) -> Command {
        let mut command = Command::new(tools::client_program(self.major, "psql"));
        command.env_clear().env("PGPASSWORD", &self.password).env("PGTZ", "UTC").env("LC_ALL", "C.UTF-8");
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", &self.url(database)]);
        command
    }

    /// Runs SQL; gives what it printed without the last newline, or what went to stderr.
    pub fn try_psql(&self, database: &str, sql: &str) -> Result<String, String> {
        let mut command = self.psql_command(database);
        command.args(["-c", sql]);
        finish(command)
    }

    /// Runs SQL; gives what it printed without the last newline.
    #[track_caller]
    pub fn psql(&self, database: &str, sql: &str) -> String {
        match self.try_psql(database, sql) {
            Ok(rows) => rows,
            Err(error) => panic!("psql on {database} failed: {error}\nin: {sql}"),
        }
    }

    /// Runs a script with psql variables; gives what it printed without the last newline.
    #[track_caller]
    pub fn psql_file(&self, database: &str, file: &Path, variables: &[(&str, &str)]) -> String {
        let mut command = self.psql_command(database);
        for (name, value) in variables {
            command.args(["-v", &format!("{name}={value}")]);
        }
        command.arg("-f").arg(file);
        match finish(command) {
            Ok(rows) => rows,
            Err(error) => panic!("psql on {database} with {} failed: {error}", file.display()),
        }
    }

    /// Creates an empty database in UTF-8 and fills it with the ALT_LAS fixture.
    #[track_caller]
    pub fn create_altlas(&self, database: &str, rows: u64, seed: u64) {
        self.psql("postgres", &format!("CREATE DATABASE \"{database}\" TEMPLATE template0 ENCODING 'UTF8'"));
        self.fill_altlas(database, rows, seed);
    }

    /// Fills an empty database with the ALT_LAS fixture.
    #[track_caller]
    pub fn fill_altlas(&self, database: &str, rows: u64, seed: u64) {
        let (rows, seed) = (rows.to_string(), seed.to_string());
        self.psql_file(database, &fixture("altlas.sql"), &[("rows", &rows), ("seed", &seed)]);
    }

    /// What `pg_dump` or `pg_dumpall` of a version prints of this server, by lines, without what names a version or is random.
    #[track_caller]
    pub fn dump(&self, by: Major, program: &str, arguments: &[&str]) -> Vec<String> {
        let mut command = Command::new(tools::client_program(by, program));
        command.env("PGPASSWORD", &self.password).args([
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
            "-p",
            &self.port.to_string(),
        ]);
        let output = command.args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let random = ["-- Dumped", "\\restrict", "\\unrestrict"];
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().filter(|line| !random.iter().any(|start| line.starts_with(start))).map(str::to_owned).collect()
    }

    /// Rows and a digest of the rows' text, by table (`schema.name`): equal on two servers where the content is.
    #[track_caller]
    pub fn digests(&self, database: &str) -> BTreeMap<String, (u64, String)> {
        self.psql_file(database, &fixture("digests.sql"), &[])
            .lines()
            .map(|line| {
                let fields: Vec<&str> = line.split('|').collect();
                let [table, rows, digest] = fields[..] else { panic!("not table|rows|digest: {line}") };
                (table.to_owned(), (rows.parse().unwrap(), digest.to_owned()))
            })
            .collect()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(15).collect();
            eprintln!("the last lines of PostgreSQL's log ({:?}):", self.major);
            tail.iter().rev().for_each(|line| eprintln!("  {line}"));
        }
    }
}

fn finish(mut command: Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().expect("psql can be started");
    if output.status.success() {
        let mut rows = String::from_utf8(output.stdout).expect("psql prints UTF-8");
        if rows.ends_with('\n') {
            rows.pop();
        }
        Ok(rows)
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// A data folder fresh from `initdb`: made once for each version and kept with the build's temporary files, since
/// copying one takes a tenth of the time.
fn template(major: Major) -> PathBuf {
    static MAKING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = MAKING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);

    let version = Command::new(tools::server_program(major, "postgres")).arg("-V").output().unwrap();
    assert!(version.status.success(), "postgres -V: {}", String::from_utf8_lossy(&version.stderr));
    let version: String = String::from_utf8(version.stdout)
        .unwrap()
        .trim()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
        .collect();
    // The number is the template's own version: count it up when the way it is made changes.
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("template-1-{version}"));
    if kept.exists() {
        return kept;
    }

    let folder = temp_folder();
    let data = initialize(major, folder.path());
    fs::create_dir_all(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let made = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    copy(&data, &made.path().join("data"));
    // Another process may have been faster; its template is as good.
    if fs::rename(made.path().join("data"), &kept).is_err() {
        assert!(kept.exists(), "{} cannot be made", kept.display());
    }
    kept
}

/// `initdb`, into the folder `data` of this one; gives that.
fn initialize(major: Major, folder: &Path) -> PathBuf {
    let data = folder.join("data");
    fs::create_dir(&data).unwrap();
    give_to_postgres(&data);
    let password = folder.join("password");
    fs::write(&password, TEMPLATE_PASSWORD).unwrap();
    let mut initdb = process::bound_command(&tools::server_program(major, "initdb"), true);
    initdb.args(["--no-sync", "--username=postgres", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8"]);
    initdb.arg("--pwfile").arg(&password).arg("-D").arg(&data);
    let output = initdb.stdin(Stdio::null()).output().expect("setpriv can be started");
    assert!(output.status.success(), "initdb failed: {}", String::from_utf8_lossy(&output.stderr));
    data
}

/// Copies a folder with owners and modes.
fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success(), "cp -a {} {}", from.display(), to.display());
}

/// Makes a file or folder the server's own, where it runs as another user.
pub fn give_to_postgres(path: &Path) {
    if tools::is_root() {
        let status = Command::new("chown").arg("postgres:postgres").arg(path).status().unwrap();
        assert!(status.success(), "chown postgres {}", path.display());
    }
}

fn append(path: &Path, text: &str) {
    use std::io::Write;
    fs::File::options().append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}
