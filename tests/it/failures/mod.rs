//! What goes wrong is said: one clear error that names the thing, a next step where an operator can take one, the right
//! exit code, nothing recorded, and nobody left behind on the server. Each case runs twice, for people and with `--json`.

mod capture;
mod configuration;
mod content;
mod server;
mod standby;
mod store;

use std::{net::SocketAddr, time::Duration};

use serde_json::{Value, json};

use crate::support::{
    binary::{Output, Run},
    mode::Mode,
    postgres::{Major, Postgres},
    proxy::TcpProxy,
    wait_for,
    workspace::Workspace,
};

/// How long something that is on its way may take.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// What a failure must look like: its exit code and kind, words of its message, and words of its hint. An empty hint asks
/// for none.
pub(crate) struct Failure<'a> {
    pub(crate) code: i32,
    pub(crate) kind: &'a str,
    pub(crate) words: &'a [&'a str],
    pub(crate) hint: &'a str,
}

impl Failure<'_> {
    /// Of a run for people: one `error:` line, a `hint:` line, and nothing on stdout.
    #[track_caller]
    fn check_text(&self, output: Output) {
        let output = output.assert_error(self.code, self.words);
        assert_eq!(output.stdout, "", "stdout\n{}", output.text());
        let hint = output.stderr.lines().find_map(|line| line.strip_prefix("hint: ")).unwrap_or_default();
        assert!(hint.contains(self.hint), "`{}` is not in the hint\n{}", self.hint, output.text());
    }

    /// Of a run with `--json`: one document and nothing else on stdout.
    #[track_caller]
    fn check_json(&self, output: Output) {
        let output = output.assert_error(self.code, self.words);
        let document = output.json();
        let keys: Vec<&String> = document.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["error"], "{}", output.text());
        let error = &document["error"];
        assert_eq!(error["kind"], self.kind, "{}", output.text());
        let message = error["message"].as_str().unwrap().to_lowercase();
        for word in self.words {
            let said = message.contains(&word.to_lowercase());
            assert!(said || self.hint.contains(word), "`{word}` is not in the message\n{}", output.text());
        }
        let hint = error["hint"].as_str().unwrap_or_default();
        assert!(hint.contains(self.hint), "`{}` is not in the hint\n{}", self.hint, output.text());
    }

    /// Runs it both ways, one after the other.
    #[track_caller]
    pub(crate) fn of(&self, mut run: impl FnMut() -> Run) {
        self.check_text(run().deadline(SOON).output());
        self.check_json(run().argument("--json").deadline(SOON).output());
    }

    /// Runs it both ways at once: for what takes its time to be given up.
    #[track_caller]
    pub(crate) fn of_both_at_once(&self, run: impl Fn() -> Run) {
        let (text, json) = (run().spawn(), run().argument("--json").spawn());
        self.check_text(text.wait());
        self.check_json(json.wait());
    }
}

/// The repository is readable and holds no backup, not even an unfinished one.
#[track_caller]
pub(crate) fn assert_nothing_recorded(workspace: &Workspace) {
    assert_eq!(listed(workspace), json!([]));
}

#[track_caller]
fn listed(workspace: &Workspace) -> Value {
    workspace.run(&["list", "--json"]).ok().json()["backups"].clone()
}

/// No session of ours is left on the server.
#[track_caller]
fn assert_nobody_left(server: &Postgres) {
    let ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'altlas-backup'";
    wait_for("our sessions to end", SOON, || (server.psql("postgres", ours) == "0").then_some(()));
}

/// A database with one small table.
fn create_small(server: &Postgres, name: &str) {
    server.psql("postgres", &format!("CREATE DATABASE {name}"));
    server.psql(name, "CREATE TABLE small AS SELECT g AS a FROM generate_series(1, 100) g");
}

/// An initialised repository in a folder, with this source; in clear, for what fails before anything is stored.
fn initialised(server: &Postgres, databases: &[&str]) -> Workspace {
    initialised_in(Mode::Clear, server, databases)
}

/// An initialised repository in a folder, with this source.
fn initialised_in(mode: Mode, server: &Postgres, databases: &[&str]) -> Workspace {
    let workspace = Workspace::folder().mode(mode).postgres(server, databases);
    workspace.run(&["init"]).ok();
    workspace
}

fn before(server: &Postgres) -> TcpProxy {
    TcpProxy::start(SocketAddr::from(([127, 0, 0, 1], server.port())))
}

/// Puts a proxy between the program and its first source.
fn through(workspace: &mut Workspace, proxy: &TcpProxy) {
    workspace.set("source.0.url", format!("postgres://postgres@127.0.0.1:{}/postgres", proxy.port()));
}

/// A server with one table that takes a while to be read.
fn with_a_large_table() -> Postgres {
    let server = Postgres::start(Major::V15);
    server.psql("postgres", "CREATE DATABASE one");
    server.psql(
        "one",
        "CREATE TABLE large AS SELECT g, md5(g::text) || md5((g + 1)::text) AS a, md5((-g)::text) AS b \
         FROM generate_series(1, 800000) g; CREATE TABLE next_to_it AS SELECT 1 AS a",
    );
    server
}
