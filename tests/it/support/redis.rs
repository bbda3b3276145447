//! Throwaway Redis servers, and what an independent client (redis-py) sees in them.
//!
//! Each has a folder of its own below `/tmp`, listens on a free port of 127.0.0.1, asks for a password, and is stopped
//! and removed when dropped, with the children that it forked. Settings are Redis' own defaults (it saves RDB files, and
//! no AOF) but for these and for `DEBUG`, which is allowed; a test says what else it wants as lines of configuration.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use redis::{Client, Connection, ErrorKind, RedisError, RedisResult, Value};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{assert_same_lines, fixture, free_port, postgres::give_to_postgres, process, temp_folder, tools, wait_for};

/// A version of Redis that the tests can start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RedisVersion {
    /// 6.2.14: RDB 9.
    V62,
    /// 7.0.15, Debian 12's: RDB 10.
    V70,
    /// 8.2.3: RDB 12.
    V82,
}

impl RedisVersion {
    /// Those of the tests, oldest first.
    pub const ALL: [Self; 3] = [Self::V62, Self::V70, Self::V82];

    /// The first two numbers.
    pub fn number(self) -> &'static str {
        match self {
            Self::V62 => "6.2",
            Self::V70 => "7.0",
            Self::V82 => "8.2",
        }
    }
}

/// How long a server may take to answer. It may load some hundred megabytes first.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// A running server.
#[derive(Debug)]
pub struct Redis {
    version: RedisVersion,
    port: u16,
    password: String,
    server: Option<Child>,
    as_postgres: bool,
    folder: TempDir,
}

impl Redis {
    /// Starts an empty server.
    pub fn start(version: RedisVersion) -> Self {
        Self::start_with(version, &[])
    }

    /// Starts an empty server with more lines for its configuration, like `save ""`.
    pub fn start_with(version: RedisVersion, lines: &[&str]) -> Self {
        let mut redis = Self::prepare(version, lines);
        redis.resume();
        redis
    }

    /// Starts a server on an RDB file, of which it gets a copy.
    pub fn start_on(version: RedisVersion, file: &Path, lines: &[&str]) -> Self {
        let mut redis = Self::prepare(version, lines);
        fs::copy(file, redis.folder().join("dump.rdb")).unwrap();
        redis.resume();
        redis
    }

    /// Starts an empty server that has no rights of root, who may write anywhere: for tests of folders that cannot be
    /// written. Where we are not root either, it runs as ourselves.
    pub fn start_without_rights(version: RedisVersion, lines: &[&str]) -> Self {
        let mut redis = Self::prepare(version, lines);
        redis.as_postgres = true;
        for path in [redis.folder(), redis.config_file()] {
            give_to_postgres(&path);
        }
        redis.resume();
        redis
    }

    /// A server that was not started yet: [`Redis::resume`] does.
    pub fn prepare(version: RedisVersion, lines: &[&str]) -> Self {
        let folder = temp_folder();
        let password = format!("pw-{:016x}", rand::random::<u64>());
        let redis = Self { version, port: 0, password, server: None, as_postgres: false, folder };
        fs::create_dir(redis.folder()).unwrap();
        let mut config = format!("bind 127.0.0.1\nrequirepass {}\ndir {}\n", redis.password, redis.folder().display());
        if version >= RedisVersion::V70 {
            config += "enable-debug-command local\n";
        }
        for line in lines {
            config += line;
            config.push('\n');
        }
        secret(&redis.config_file(), &config);
        secret(&redis.password_file(), &format!("{}\n", redis.password));
        redis
    }

    /// Starts the server, again after [`Redis::stop`] or [`Redis::kill`]: on the files in its folder, on the port it had
    /// if that is still free. Waits until it answers, its data loaded.
    pub fn resume(&mut self) {
        for _ in 0..5 {
            self.resume_without_waiting();
            let ready = wait_for("Redis to answer", READY_WITHIN, || {
                if !self.is_running() {
                    return Some(false);
                }
                self.try_command(&["PING"]).is_ok().then_some(true)
            });
            if ready {
                return;
            }
            // Somebody else may have taken the port between our look and the server's.
            self.server = None;
            self.port = 0;
        }
        panic!("Redis does not start; its log:\n{}", self.log());
    }

    /// As [`Redis::resume`] without the waiting: clients may find nobody, or a server that still loads.
    pub fn resume_without_waiting(&mut self) {
        assert!(self.server.is_none(), "the server runs");
        if self.port == 0 || std::net::TcpListener::bind(("127.0.0.1", self.port)).is_err() {
            self.port = free_port();
        }
        let log = fs::File::options().create(true).append(true).open(self.log_file()).unwrap();
        let mut command = process::bound_command(&tools::redis_server(self.version), self.as_postgres);
        command.arg(self.config_file()).args(["--port", &self.port.to_string()]);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.server = Some(process::spawn(command).expect("setpriv can be started"));
    }

    /// Has the server not ended?
    pub fn is_running(&mut self) -> bool {
        self.server.as_mut().is_some_and(|server| matches!(server.try_wait(), Ok(None)))
    }

    /// Ends the server as a service manager does: it saves what it holds where it is configured to save.
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            process::stop(&mut server, Signal::TERM, Duration::from_secs(60));
        }
    }

    /// `kill -9`, its children too.
    pub fn kill(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        // Standing still first, so that it forks nobody between our look and its end.
        process::signal(&server, Signal::STOP);
        let children = children(server.id());
        let _ = server.kill();
        for child in children {
            let _ = kill_process(child, Signal::KILL);
        }
        let _ = server.wait();
    }

    /// The server's process id.
    pub fn pid(&self) -> u32 {
        self.server.as_ref().expect("the server runs").id()
    }

    /// Processes that the server forked and that have not ended: dumps being written.
    pub fn children(&self) -> usize {
        children(self.pid()).len()
    }

    /// Its version.
    pub fn version(&self) -> RedisVersion {
        self.version
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The default user's password.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// A file that holds the default user's password and a newline.
    pub fn password_file(&self) -> PathBuf {
        self.folder.path().join("password")
    }

    /// Its address, as the program under test is given it.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Its address for another user.
    pub fn url_as(&self, user: &str) -> String {
        format!("redis://{user}@127.0.0.1:{}", self.port)
    }

    /// The folder that it keeps its files in (`dir`).
    pub fn folder(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Names of the files in its folder, sorted, those in folders in it too.
    pub fn files(&self) -> Vec<String> {
        fn walk(root: &Path, folder: &Path, found: &mut Vec<String>) {
            for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                found.push(path.strip_prefix(root).unwrap().display().to_string());
                if path.is_dir() {
                    walk(root, &path, found);
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.folder(), &self.folder(), &mut found);
        found.sort();
        found
    }

    /// What the server has logged so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_file()).unwrap_or_default()).into_owned()
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn config_file(&self) -> PathBuf {
        self.folder.path().join("redis.conf")
    }

    /// A connection as the default user.
    pub fn try_connection(&self) -> RedisResult<Connection> {
        let client = Client::open(format!("redis://:{}@127.0.0.1:{}/", self.password, self.port))?;
        let connection = client.get_connection_with_timeout(Duration::from_secs(10))?;
        connection.set_read_timeout(Some(READY_WITHIN))?;
        Ok(connection)
    }

    /// A connection as the default user.
    #[track_caller]
    pub fn connection(&self) -> Connection {
        self.try_connection().unwrap_or_else(|error| panic!("connecting to Redis: {error}"))
    }

    /// One command on a connection of its own; its answer as text, what an array holds on a line each.
    pub fn try_command(&self, words: &[&str]) -> RedisResult<String> {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query::<Value>(&mut self.try_connection()?).map(|value| text(&value))
    }

    /// One command on a connection of its own; its answer as text, what an array holds on a line each.
    #[track_caller]
    pub fn command(&self, words: &[&str]) -> String {
        self.try_command(words).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// A setting's value.
    #[track_caller]
    pub fn setting(&self, name: &str) -> String {
        let answer = self.command(&["CONFIG", "GET", name]);
        answer.split_once('\n').unwrap_or_else(|| panic!("no setting `{name}`")).1.to_owned()
    }

    /// A line of `INFO`.
    #[track_caller]
    pub fn info(&self, name: &str) -> String {
        let info = self.command(&["INFO", "everything"]);
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("INFO without `{name}`")).trim_end().to_owned()
    }

    /// A user, by rules as `ACL SETUSER` takes them, parted by spaces: `+ping ~cache:*`.
    #[track_caller]
    pub fn acl_user(&self, name: &str, password: &str, rules: &str) {
        let password = format!(">{password}");
        let mut words = vec!["ACL", "SETUSER", name, "reset", "on", &password];
        words.extend(rules.split(' '));
        self.command(&words);
    }

    /// Keys in all databases, those that are past their time and still in memory too.
    pub fn keys(&self) -> u64 {
        let keyspace = self.command(&["INFO", "keyspace"]);
        let counts =
            keyspace.lines().filter_map(|line| line.split_once(":keys=")?.1.split(',').next()?.parse::<u64>().ok());
        counts.sum()
    }

    /// Fills it by `tests/fixtures/redis/fill.py`, which says what the kinds `altlas`, `types`, `big` and `many` are.
    #[track_caller]
    pub fn fill(&self, kind: &str, size: u64, seed: u64) {
        self.python("redis/fill.py", &[kind, &size.to_string(), &seed.to_string()]);
    }

    /// What redis-py sees in it: equal where the data is, whatever the version. See `tests/fixtures/redis/digest.py`.
    #[track_caller]
    pub fn digest(&self) -> String {
        self.python("redis/digest.py", &[])
    }

    /// The same with a line for each key, without what expires before `horizon` (ms since 1970), and of streams only what
    /// a server of version `seen_as` can tell.
    #[track_caller]
    pub fn digest_beyond(&self, horizon: u64, seen_as: RedisVersion) -> Digest {
        let arguments = ["--keys", "--skip-expiring-before", &horizon.to_string(), "--as", seen_as.number()];
        Digest(self.python("redis/digest.py", &arguments))
    }

    #[track_caller]
    fn python(&self, script: &str, arguments: &[&str]) -> String {
        let mut command: Command = tools::python();
        command.arg(fixture(script)).arg(self.port.to_string()).arg(&self.password).args(arguments);
        let output = command.stdin(Stdio::null()).output().expect("python3 can be started");
        assert!(output.status.success(), "{script} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(15).collect();
            eprintln!("the last lines of Redis' log ({}):", self.version.number());
            tail.iter().rev().for_each(|line| eprintln!("  {line}"));
        }
    }
}

/// A server's content by key, as an independent client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest(String);

impl Digest {
    /// Keys it covers.
    pub fn keys(&self) -> usize {
        self.0.lines().filter(|line| line.starts_with("key ")).count()
    }

    /// Keys it covers in one database.
    pub fn keys_in(&self, db: u32) -> usize {
        let start = format!("key {db} ");
        self.0.lines().filter(|line| line.starts_with(&start)).count()
    }

    /// Panics with what differs, at most ten lines a side.
    #[track_caller]
    pub fn assert_same(&self, other: &Self) {
        assert_same_lines(&self.0, &other.0);
    }
}

/// A moment in ms since 1970, as Redis counts time, so far from now.
pub fn ms_from_now(time: Duration) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + time;
    u64::try_from(now.as_millis()).unwrap()
}

/// Is this the answer of a server that has not loaded its data yet?
pub fn is_loading(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(redis::ServerErrorKind::BusyLoading)
}

fn text(value: &Value) -> String {
    match value {
        Value::Nil => String::new(),
        Value::Int(number) => number.to_string(),
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(line) => line.clone(),
        Value::Okay => "OK".into(),
        Value::Array(values) => values.iter().map(text).collect::<Vec<_>>().join("\n"),
        other => format!("{other:?}"),
    }
}

fn secret(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn children(of: u32) -> Vec<Pid> {
    let found = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    found.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}
