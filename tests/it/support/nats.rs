//! Throwaway NATS servers, and what an independent client (nats-py) sees in their streams.
//!
//! Each has a folder of its own below `/tmp`, listens on a free port of 127.0.0.1, asks for a user and a password (or
//! for a token), keeps JetStream's files in its folder, has no monitoring port, and is stopped and removed when dropped.
//! Everything else is NATS' own default; a test says what else it wants by a [`Setup`].
//!
//! [`Connection`] is a small client of our own, for threads: requests by hand, as the protocol has them.

use std::{
    fs, io,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{assert_same_lines, fixture, free_port, process, temp_folder, tools, wait_for};

/// A version of NATS that the tests can start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NatsVersion {
    /// 2.9.10, Debian 12's: snapshots are archives of blocks, sent without waiting for acknowledgements, and no end
    /// says how it went.
    V29,
    /// 2.10.26: an end that says how it went; 2 s without an acknowledgement end a snapshot.
    V210,
    /// 2.11.11: the last one that refuses removals while a snapshot runs.
    V211,
    /// 2.12.8: refuses unknown fields in requests; 5 s without an acknowledgement end a snapshot.
    V212,
    /// 2.14.6: the last one with archives of blocks.
    V214,
    /// 2.15.1: snapshots are archives of messages, of streams in memory too.
    V215,
}

impl NatsVersion {
    /// The oldest and the newest: every test's.
    pub const ENDS: [Self; 2] = [Self::V29, Self::V215];
    /// All, oldest first.
    pub const ALL: [Self; 6] = [Self::V29, Self::V210, Self::V211, Self::V212, Self::V214, Self::V215];

    /// The first two numbers.
    pub fn number(self) -> &'static str {
        match self {
            Self::V29 => "2.9",
            Self::V210 => "2.10",
            Self::V211 => "2.11",
            Self::V212 => "2.12",
            Self::V214 => "2.14",
            Self::V215 => "2.15",
        }
    }
}

/// How long a server may take to answer. It may have to read a gigabyte of blocks first.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// How long any answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// The user of the servers that ask for a user and a password.
const USER: &str = "backup";

/// What a server is like, where it is not as most.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    token: bool,
    without_jetstream: bool,
    max_file_store: Option<u64>,
    max_memory: Option<u64>,
    lines: Vec<String>,
}

impl Setup {
    /// As most servers are.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for a token, not for a user and a password.
    pub fn token(mut self) -> Self {
        self.token = true;
        self
    }

    /// With JetStream switched off.
    pub fn without_jetstream(mut self) -> Self {
        self.without_jetstream = true;
        self
    }

    /// With this much room for streams in files, in bytes.
    pub fn max_file_store(mut self, bytes: u64) -> Self {
        self.max_file_store = Some(bytes);
        self
    }

    /// With this much room for streams in memory, in bytes.
    pub fn max_memory(mut self, bytes: u64) -> Self {
        self.max_memory = Some(bytes);
        self
    }

    /// With more lines for its configuration, like `max_payload: 65536`; `PASSWORD` in them becomes the server's. A
    /// block of a name that is there already, like `authorization`, takes its place.
    pub fn lines(mut self, lines: &[&str]) -> Self {
        self.lines.extend(lines.iter().map(|line| (*line).to_owned()));
        self
    }
}

/// A running server.
#[derive(Debug)]
pub struct Nats {
    version: NatsVersion,
    setup: Setup,
    port: u16,
    password: String,
    server: Option<Child>,
    folder: TempDir,
}

impl Nats {
    /// Starts an empty server.
    pub fn start(version: NatsVersion) -> Self {
        Self::start_as(version, Setup::new())
    }

    /// Starts an empty server with more lines for its configuration.
    pub fn start_with(version: NatsVersion, lines: &[&str]) -> Self {
        Self::start_as(version, Setup::new().lines(lines))
    }

    /// Starts an empty server that is set up like this.
    pub fn start_as(version: NatsVersion, setup: Setup) -> Self {
        let mut nats = Self::prepare(version, setup);
        nats.resume();
        nats
    }

    /// A server that was not started yet: [`Nats::resume`] does.
    pub fn prepare(version: NatsVersion, setup: Setup) -> Self {
        let password = format!("pw-{:016x}", rand::random::<u64>());
        let nats = Self { version, setup, port: 0, password, server: None, folder: temp_folder() };
        secret(&nats.password_file(), &format!("{}\n", nats.password));
        nats.configure();
        nats
    }

    /// Sets it up differently, from its next start on: with other limits, say. Who may enter stays as it is.
    pub fn set_up(&mut self, setup: Setup) {
        assert!(self.server.is_none(), "the server runs");
        self.setup = Setup { token: self.setup.token, ..setup };
        self.configure();
    }

    fn configure(&self) {
        let Setup { token, without_jetstream, max_file_store, max_memory, lines } = &self.setup;
        let mut config = if *token {
            format!("authorization {{ token: \"{}\" }}\n", self.password)
        } else {
            format!("authorization {{ user: {USER}, password: \"{}\" }}\n", self.password)
        };
        if !without_jetstream {
            config += &format!("jetstream {{\n  store_dir: \"{}\"\n", self.folder().display());
            for (name, bytes) in [("max_file_store", max_file_store), ("max_memory_store", max_memory)] {
                config += &bytes.map_or_else(String::new, |bytes| format!("  {name}: {bytes}\n"));
            }
            config += "}\n";
        }
        for line in lines {
            config += &line.replace("PASSWORD", &self.password);
            config.push('\n');
        }
        secret(&self.config_file(), &config);
    }

    /// Starts the server, again after [`Nats::stop`] or [`Nats::kill`]: on the files in its folder, on the port it had
    /// if that is still free. Waits until it answers, JetStream too where it has that.
    pub fn resume(&mut self) {
        for _ in 0..5 {
            self.resume_without_waiting();
            let ready = wait_for("NATS to answer", READY_WITHIN, || {
                if !self.is_running() {
                    return Some(false);
                }
                self.answers().then_some(true)
            });
            if ready {
                return;
            }
            // Somebody else may have taken the port between our look and the server's.
            self.server = None;
            self.port = 0;
        }
        panic!("NATS does not start; its log:\n{}", self.log());
    }

    /// As [`Nats::resume`] without the waiting: clients may find nobody.
    pub fn resume_without_waiting(&mut self) {
        assert!(self.server.is_none(), "the server runs");
        if self.port == 0 || std::net::TcpListener::bind(("127.0.0.1", self.port)).is_err() {
            self.port = free_port();
        }
        let log = fs::File::options().create(true).append(true).open(self.log_file()).unwrap();
        let mut command = process::bound_command(&tools::nats_server(self.version), false);
        command.arg("--config").arg(self.config_file());
        command.args(["--addr", "127.0.0.1", "--port", &self.port.to_string()]);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.server = Some(process::spawn(command).expect("setpriv can be started"));
    }

    fn answers(&self) -> bool {
        let Ok(mut connection) = self.try_connection() else { return false };
        self.setup.without_jetstream
            || connection
                .request("$JS.API.INFO", b"")
                .is_ok_and(|answer| answer.status.is_none() && answer.json()["error"].is_null())
    }

    /// Has the server not ended?
    pub fn is_running(&mut self) -> bool {
        self.server.as_mut().is_some_and(|server| matches!(server.try_wait(), Ok(None)))
    }

    /// Ends the server as a service manager does.
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            process::stop(&mut server, Signal::TERM, Duration::from_secs(60));
        }
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    /// Lets the server stand still, as if its machine had stopped, with connections open; [`Nats::unfreeze`] ends it.
    pub fn freeze(&self) {
        process::signal(self.server.as_ref().expect("the server runs"), Signal::STOP);
    }

    /// Ends [`Nats::freeze`].
    pub fn unfreeze(&self) {
        process::signal(self.server.as_ref().expect("the server runs"), Signal::CONT);
    }

    /// Its version.
    pub fn version(&self) -> NatsVersion {
        self.version
    }

    /// The server's process id.
    pub fn pid(&self) -> u32 {
        self.server.as_ref().expect("the server runs").id()
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The user that it asks for; empty where it asks for a token.
    pub fn user(&self) -> &'static str {
        if self.setup.token { "" } else { USER }
    }

    /// The user's password, or the token where it asks for one.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// A file that holds the password (or token) and a newline.
    pub fn password_file(&self) -> PathBuf {
        self.folder.path().join("password")
    }

    /// Its address, without the user: `nats://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Its address with the user.
    pub fn url_with_user(&self) -> String {
        format!("nats://{USER}@127.0.0.1:{}", self.port)
    }

    /// The folder that JetStream keeps its files in (`store_dir`).
    pub fn folder(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// What the server has logged so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_file()).unwrap_or_default()).into_owned()
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn config_file(&self) -> PathBuf {
        self.folder.path().join("nats.conf")
    }

    /// A connection as the user, or with the token.
    pub fn try_connection(&self) -> io::Result<Connection> {
        let credentials = if self.setup.token {
            json!({ "auth_token": self.password })
        } else {
            json!({ "user": USER, "pass": self.password })
        };
        Connection::open(self.port, &credentials)
    }

    /// A connection as the user, or with the token.
    #[track_caller]
    pub fn connection(&self) -> Connection {
        self.try_connection().unwrap_or_else(|error| panic!("connecting to NATS: {error}"))
    }

    /// A request of JetStream's API on a connection of its own, without `$JS.API.`: its answer, an error too. An empty
    /// payload is given as `Value::Null`.
    #[track_caller]
    pub fn request(&self, subject: &str, payload: &Value) -> Value {
        let payload = if payload.is_null() { String::new() } else { payload.to_string() };
        let answer = self.connection().request(&format!("$JS.API.{subject}"), payload.as_bytes());
        let answer = answer.unwrap_or_else(|error| panic!("{subject}: {error}"));
        assert_eq!(answer.status, None, "{subject}");
        answer.json()
    }

    /// As [`Nats::request`] for what must not fail.
    #[track_caller]
    pub fn ask(&self, subject: &str, payload: &Value) -> Value {
        let answer = self.request(subject, payload);
        assert!(answer["error"].is_null(), "{subject}: {answer}");
        answer
    }

    /// Publishes a message and waits until a stream has stored it; gives its sequence.
    #[track_caller]
    pub fn publish(&self, subject: &str, payload: &[u8]) -> u64 {
        let answer = self.connection().request(subject, payload).unwrap_or_else(|error| panic!("{subject}: {error}"));
        assert_eq!(answer.status, None, "{subject}: no stream listens");
        answer.json()["seq"].as_u64().unwrap_or_else(|| panic!("{subject}: {}", answer.json()))
    }

    /// Names of all streams, sorted.
    #[track_caller]
    pub fn streams(&self) -> Vec<String> {
        self.names("STREAM.NAMES", "streams")
    }

    /// Names of a stream's consumers, sorted.
    #[track_caller]
    pub fn consumers(&self, stream: &str) -> Vec<String> {
        self.names(&format!("CONSUMER.NAMES.{stream}"), "consumers")
    }

    #[track_caller]
    fn names(&self, subject: &str, what: &str) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        loop {
            let page = self.ask(subject, &json!({ "offset": names.len() }));
            let found = page[what].as_array().cloned().unwrap_or_default();
            names.extend(found.iter().map(|name| name.as_str().unwrap().to_owned()));
            if found.is_empty() || names.len() as u64 >= page["total"].as_u64().unwrap() {
                names.sort();
                return names;
            }
        }
    }

    /// `STREAM.INFO` of a stream.
    #[track_caller]
    pub fn info(&self, stream: &str) -> Value {
        self.ask(&format!("STREAM.INFO.{stream}"), &Value::Null)
    }

    /// `CONSUMER.INFO` of a consumer.
    #[track_caller]
    pub fn consumer_info(&self, stream: &str, consumer: &str) -> Value {
        self.ask(&format!("CONSUMER.INFO.{stream}.{consumer}"), &Value::Null)
    }

    /// Messages in a stream.
    #[track_caller]
    pub fn messages(&self, stream: &str) -> u64 {
        self.info(stream)["state"]["messages"].as_u64().unwrap()
    }

    /// Deletes a stream with all in it.
    #[track_caller]
    pub fn delete_stream(&self, stream: &str) {
        self.ask(&format!("STREAM.DELETE.{stream}"), &Value::Null);
    }

    /// Fills it by `tests/fixtures/nats/fill.py`, which says what the kinds `altlas`, `types`, `many`, `large` and
    /// `streams` are.
    #[track_caller]
    pub fn fill(&self, kind: &str, size: u64, seed: u64) {
        self.python("nats/fill.py", &[kind, &size.to_string(), &seed.to_string()]);
    }

    /// What nats-py sees in it: equal where the data is, whatever the version. See `tests/fixtures/nats/digest.py`,
    /// which takes `options`: `--messages` for a line a message, `--without-times`, `--stream NAME`.
    #[track_caller]
    pub fn digest(&self, options: &[&str]) -> NatsDigest {
        NatsDigest(self.python("nats/digest.py", options))
    }

    /// The same of streams that copy from others, and may be at it yet: once they stand still.
    #[track_caller]
    pub fn digest_at_rest(&self, options: &[&str]) -> NatsDigest {
        let digest = || match self.try_python("nats/digest.py", options) {
            Err(told) if told.contains("has changed meanwhile") => None,
            told => Some(NatsDigest(told.unwrap_or_else(|told| panic!("{told}")))),
        };
        wait_for("streams to stand still", Duration::from_secs(60), digest)
    }

    /// Starts `tests/fixtures/nats/writer.py`, which publishes, deletes and acknowledges until it is told to end; with
    /// so many messages in its larger streams before.
    #[track_caller]
    pub fn writer(&self, prefill: u64) -> Writer {
        let mut command = self.script("nats/writer.py");
        command.args(["--prefill", &prefill.to_string()]);
        Writer::start(command)
    }

    /// One of the scripts of `tests/fixtures`, with the address and the credentials as its first arguments.
    pub fn script(&self, script: &str) -> Command {
        let mut command: Command = tools::python();
        command.arg(fixture(script)).arg(self.port.to_string()).arg(self.user()).arg(&self.password);
        command.stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn python(&self, script: &str, arguments: &[&str]) -> String {
        self.try_python(script, arguments).unwrap_or_else(|told| panic!("{told}"))
    }

    fn try_python(&self, script: &str, arguments: &[&str]) -> Result<String, String> {
        let output = self.script(script).args(arguments).output().expect("python3 can be started");
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap()),
            false => Err(format!("{script} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr))),
        }
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(15).collect();
            eprintln!("the last lines of NATS' log ({}):", self.version.number());
            tail.iter().rev().for_each(|line| eprintln!("  {line}"));
        }
    }
}

/// What an independent client sees in a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsDigest(String);

impl NatsDigest {
    /// Its text.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Streams it covers.
    pub fn streams(&self) -> usize {
        self.0.lines().filter(|line| line.starts_with("stream ")).count()
    }

    /// Messages it covers, in all streams.
    pub fn messages(&self) -> u64 {
        self.0.lines().filter_map(|line| line.strip_prefix("  messages ")?.split(' ').next()?.parse::<u64>().ok()).sum()
    }

    /// Panics with what differs, at most ten lines a side.
    #[track_caller]
    pub fn assert_same(&self, other: &Self) {
        assert_same_lines(&self.0, &other.0);
    }
}

/// A script that goes on until its standard input ends, and then prints what it has done: a JSON document a line.
#[derive(Debug)]
pub struct Writer {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<std::process::ChildStdout>,
}

impl Writer {
    /// Starts the script and waits for its first line, `ready`: from then on it writes.
    #[track_caller]
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3 can be started");
        let input = child.stdin.take();
        let mut writer = Self { input, output: BufReader::new(child.stdout.take().unwrap()), child };
        let mut line = String::new();
        writer.output.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "the writer does not start");
        writer
    }

    /// Ends it; gives what it has done.
    #[track_caller]
    pub fn finish(mut self) -> Vec<Value> {
        drop(self.input.take());
        let mut text = String::new();
        self.output.read_to_string(&mut text).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "the writer failed: {status}");
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status in its header: 503 where nobody listens.
    pub status: Option<u16>,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl Answer {
    /// Its payload as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.payload)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.payload)))
    }
}

/// A client's connection. An error of the server (`-ERR`) is an [`io::Error`] with its text.
#[derive(Debug)]
pub struct Connection {
    reader: BufReader<TcpStream>,
    inbox: String,
    requests: u64,
    /// What the server says of itself.
    pub info: Value,
}

impl Connection {
    /// Connects to 127.0.0.1 with these fields of `CONNECT`: `user` and `pass`, or `auth_token`.
    pub fn open(port: u16, credentials: &Value) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        stream.set_write_timeout(Some(ANSWER_WITHIN))?;
        let inbox = format!("_INBOX.{:032x}", rand::random::<u128>());
        let mut connection = Self { reader: BufReader::new(stream), inbox, requests: 0, info: Value::Null };
        let greeting = connection.line()?;
        let info = greeting.strip_prefix("INFO ").ok_or_else(|| unexpected(&greeting))?;
        connection.info = serde_json::from_str(info)?;
        let mut options = json!({ "verbose": false, "pedantic": false, "headers": true, "no_responders": true });
        let (Value::Object(all), Value::Object(more)) = (&mut options, credentials) else { unreachable!("objects") };
        all.extend(more.clone());
        connection.send(format!("CONNECT {options}\r\nPING\r\n").as_bytes())?;
        match connection.line()?.as_str() {
            "PONG" => Ok(connection),
            other => Err(unexpected(other)),
        }
    }

    /// Sends a request and waits for its answer.
    pub fn request(&mut self, subject: &str, payload: &[u8]) -> io::Result<Answer> {
        self.requests += 1;
        // A subscription a request: a message that a consumer delivers names its own subject, not our inbox.
        let id = self.requests.to_string();
        let reply = format!("{}.{id}", self.inbox);
        self.send(format!("SUB {reply} {id}\r\nUNSUB {id} 1\r\n").as_bytes())?;
        self.publish(subject, Some(&reply), payload)?;
        loop {
            let (to, answer) = self.message()?;
            // An answer that comes late is nobody's.
            if to == id {
                return Ok(answer);
            }
        }
    }

    /// Sends a message.
    pub fn publish(&mut self, subject: &str, reply: Option<&str>, payload: &[u8]) -> io::Result<()> {
        let reply = reply.map_or_else(String::new, |reply| format!("{reply} "));
        let head = format!("PUB {subject} {reply}{}\r\n", payload.len());
        self.send(&[head.as_bytes(), payload, b"\r\n"].concat())
    }

    /// Sends a message with a header: `NATS/1.0`, lines and an empty one.
    pub fn publish_with_header(&mut self, subject: &str, header: &[u8], payload: &[u8]) -> io::Result<()> {
        let head = format!("HPUB {subject} {} {}\r\n", header.len(), header.len() + payload.len());
        self.send(&[head.as_bytes(), header, payload, b"\r\n"].concat())
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    /// The next message, and the subscription that it is for.
    fn message(&mut self) -> io::Result<(String, Answer)> {
        loop {
            let line = self.line()?;
            let words: Vec<&str> = line.split(' ').collect();
            // MSG subject sid [reply] size; HMSG subject sid [reply] header-size size
            let (header, size) = match words[..] {
                ["PING"] => {
                    self.send(b"PONG\r\n")?;
                    continue;
                }
                ["PONG"] | ["INFO", ..] => continue,
                ["MSG", .., size] if words.len() >= 4 => (0, number(size)?),
                ["HMSG", .., header, size] if words.len() >= 5 => (number(header)?, number(size)?),
                _ => return Err(unexpected(&line)),
            };
            let mut bytes = vec![0; size + 2];
            self.reader.read_exact(&mut bytes)?;
            bytes.truncate(size);
            let payload = bytes.split_off(header);
            let status =
                String::from_utf8_lossy(&bytes).strip_prefix("NATS/1.0 ").and_then(|rest| rest.get(..3)?.parse().ok());
            return Ok((words[2].to_owned(), Answer { status, payload }));
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}

fn number(word: &str) -> io::Result<usize> {
    word.parse().map_err(|_| unexpected(word))
}

fn unexpected(said: &str) -> io::Error {
    io::Error::other(said.strip_prefix("-ERR ").unwrap_or(said).to_owned())
}

fn secret(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}
