//! Alerts: each change is told once, by whichever run finds it, and what cannot be told is told later and seen meanwhile.

mod delivery;
mod end_to_end;
mod once;
mod rules;
mod secrecy;

use std::path::Path;

use serde_json::Value;

use crate::support::{
    free_port,
    mode::Mode,
    receiver::{Receiver, Told},
    redis::{Redis, RedisVersion},
    workspace::Workspace,
};

/// A repository in a folder, made, with the source `cache` on a server that is not there, and a webhook.
fn failing(mode: Mode, receiver: &Receiver) -> Workspace {
    let mut workspace = Workspace::folder().mode(mode).redis_as("cache", &nowhere(), Path::new("/nonexistent"));
    workspace.set("source.0.password_file", workspace.secret("password", "pw").display().to_string());
    workspace.set("alerts.webhook.url", receiver.url("/hook"));
    workspace.run(&["init"]).ok();
    workspace
}

/// The address of a Redis that is not there.
fn nowhere() -> String {
    format!("redis://127.0.0.1:{}", free_port())
}

/// The source is well from now on.
fn heal(workspace: &mut Workspace) -> Redis {
    let server = Redis::start(RedisVersion::V70);
    server.command(&["SET", "key", "value"]);
    workspace.set("source.0.url", server.url());
    workspace.set("source.0.password_file", server.password_file().display().to_string());
    server
}

fn break_again(workspace: &mut Workspace) {
    workspace.set("source.0.url", nowhere());
}

/// What a receiver was told, in short: `firing backup-failed cache`.
fn short(told: &[Told]) -> Vec<String> {
    let word = |body: &Value, key: &str| body[key].as_str().unwrap_or("-").to_owned();
    let of = |told: &Told| {
        let subject = if told.body["source"].is_null() { "run" } else { "source" };
        format!("{} {} {}", word(&told.body, "event"), word(&told.body, "alert"), word(&told.body, subject))
    };
    told.iter().map(of).collect()
}

/// The records below a folder of a repository.
fn records(workspace: &Workspace, folder: &str) -> Vec<(String, Value)> {
    let found = workspace.objects().into_iter().filter(|(key, _)| key.starts_with(folder));
    found.map(|(key, bytes)| (key, serde_json::from_slice(&bytes).unwrap())).collect()
}
