//! Redis servers: backed up without harm to them, restored by `RESTORE` and as a file, and every failure said.

mod acl;
mod by_hand;
mod careful;
mod corruption;
mod cuts;
mod failures;
mod forms;
mod kill;
mod replication;
mod restore;
mod roundtrip;
mod stalls;
mod together;

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use serde_json::Value;

use crate::support::{
    binary::Run,
    mode::Mode,
    proxy::{Step, TcpProxy, Way},
    redis::Redis,
    wait_for,
    workspace::Workspace,
};

/// How long something that is on its way may take.
const SOON: Duration = Duration::from_secs(60);
/// A server that keeps no files and hands its data over without one.
const DISKLESS: &[&str] = &["save \"\"", "repl-diskless-sync yes", "repl-diskless-sync-delay 0"];
/// A server that keeps no files, as it comes.
const NO_FILES: &[&str] = &["save \"\""];
/// A target that keeps no files, and lets itself be compared: 6.2 offers no dump without a file by itself.
const TARGET: &[&str] = DISKLESS;
/// What expires in less is left out of comparisons: no test takes as long.
const MARGIN: Duration = Duration::from_secs(200);

/// An initialised repository in a folder, with this source.
fn initialised(mode: Mode, server: &Redis) -> Workspace {
    let workspace = Workspace::folder().mode(mode).redis(server);
    workspace.run(&["init"]).ok();
    workspace
}

/// Backs up; gives the source's part of the report.
#[track_caller]
fn back_up(workspace: &Workspace) -> Value {
    let report = workspace.run(&["--json", "backup"]).ok().json();
    assert_eq!(report["state"], "complete", "{report}");
    report["sources"][0].clone()
}

/// `restore latest` into a server.
fn restore(workspace: &Workspace, target: &Redis, more: &[&str]) -> Run {
    restore_at(workspace, &target.url(), target.password(), more)
}

/// `restore latest` into whatever listens there.
fn restore_at(workspace: &Workspace, url: &str, password: &str, more: &[&str]) -> Run {
    let target = format!("cache={url}");
    let arguments = ["restore", "latest", "--yes", "--source", "cache", "--target", &target];
    workspace.run(&[&arguments[..], more].concat()).env("ALTLAS_BACKUP_TARGET_CACHE_PASSWORD", password)
}

/// `restore latest` into a file.
fn to_rdb(workspace: &Workspace, file: &Path, more: &[&str]) -> Run {
    let arguments = ["restore", "latest", "--yes", "--source", "cache"];
    workspace.run(&[&arguments[..], more].concat()).argument("--to-rdb").argument(file)
}

/// How many backups `list` shows, unfinished ones too.
#[track_caller]
fn recorded(workspace: &Workspace) -> usize {
    let listed = workspace.run(&["list", "--json"]).ok().json();
    listed["backups"].as_array().unwrap().len()
}

/// Lets the server save once, so that it is known that it can.
#[track_caller]
fn save_once(server: &Redis) {
    server.command(&["BGSAVE"]);
    wait_for("the save", SOON, || (server.info("rdb_bgsave_in_progress") == "0").then_some(()));
    assert_eq!(server.info("rdb_last_bgsave_status"), "ok");
}

/// Nothing that the server began for us goes on.
#[track_caller]
fn assert_at_rest(server: &Redis) {
    wait_for("the server's children to end", SOON, || (server.children() == 0).then_some(()));
    wait_for("our connections to end", SOON, || (server.info("connected_slaves") == "0").then_some(()));
}

/// Dumps that the server began, by its log: from disk, and without a file.
fn dumps(server: &Redis) -> (usize, usize) {
    let log = server.log();
    let count = |text: &str| log.matches(text).count();
    (count("BGSAVE for SYNC with target: disk"), count("BGSAVE for SYNC with target: replicas sockets"))
}

fn before(server: &Redis) -> TcpProxy {
    TcpProxy::start(SocketAddr::from(([127, 0, 0, 1], server.port())))
}

/// Puts a proxy between the program and its source.
fn through(workspace: &mut Workspace, proxy: &TcpProxy) {
    workspace.set("source.0.url", format!("redis://127.0.0.1:{}", proxy.port()));
}

/// The server's end mark, from a dump that is asked for by hand and not read. A server has one for all its dumps, because
/// each comes from a child that inherits the same state of its random numbers.
fn end_mark(server: &Redis) -> [u8; 40] {
    let mut stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut ask = |words: &str| {
        stream.write_all(format!("{words}\r\n").as_bytes()).unwrap();
        line(&mut stream)
    };
    assert_eq!(ask(&format!("AUTH {}", server.password())), "+OK");
    assert_eq!(ask("REPLCONF capa eof"), "+OK");
    assert_eq!(ask("REPLCONF rdb-only 1"), "+OK");
    assert!(ask("PSYNC ? -1").starts_with("+FULLRESYNC "));
    let announced = line(&mut stream);
    let mark = announced.strip_prefix("$EOF:").unwrap_or_else(|| panic!("`{announced}` announces no mark"));
    mark.as_bytes().try_into().unwrap()
}

/// The next line that is not empty.
fn line(stream: &mut TcpStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte).unwrap();
        match byte[0] {
            b'\r' => {}
            b'\n' if line.is_empty() => {}
            b'\n' => return String::from_utf8(line).unwrap(),
            other => line.push(other),
        }
    }
}

/// A hook for a proxy before a source that sees the bytes of dumps only: their offset from the dump's first byte, and
/// themselves. An end mark counts as a part of the dump; what announces the dump does not.
fn in_dump(
    mut hook: impl FnMut(u64, Vec<u8>) -> Vec<Step> + Send,
) -> impl FnMut(Way, u64, Vec<u8>) -> Vec<Step> + Send {
    let mut connections: HashMap<u64, Position> = HashMap::new();
    move |way, connection, bytes| {
        if way == Way::Up {
            return vec![Step::Send(bytes)];
        }
        let position = connections.entry(connection).or_insert(Position::Before(Vec::new()));
        let offset = match position {
            Position::In(offset) => {
                let start = *offset;
                *offset += bytes.len() as u64;
                return hook(start, bytes);
            }
            Position::Before(head) => {
                let old = head.len();
                head.extend_from_slice(&bytes);
                match dump_start(head) {
                    Some(start) => start - old,
                    None => return vec![Step::Send(bytes)],
                }
            }
        };
        let mut head = bytes;
        let dump = head.split_off(offset);
        *position = Position::In(dump.len() as u64);
        let mut steps = vec![Step::Send(head)];
        if !dump.is_empty() {
            steps.extend(hook(0, dump));
        }
        steps
    }
}

enum Position {
    /// What the server has said so far.
    Before(Vec<u8>),
    /// Bytes of the dump so far.
    In(u64),
}

/// Where a dump begins in what a server says: after `+FULLRESYNC …`, perhaps empty lines, and `$…`.
fn dump_start(said: &[u8]) -> Option<usize> {
    let find = |from: usize, what: &[u8]| Some(from + memchr::memmem::find(&said[from..], what)?);
    let resync = find(0, b"+FULLRESYNC ")?;
    let announced = find(resync, b"\n$")?;
    Some(find(announced + 2, b"\r\n")? + 2)
}
