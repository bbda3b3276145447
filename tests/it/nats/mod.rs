//! NATS servers: backed up while they are used, restored stream by stream, and every failure said.

mod busy;
mod by_hand;
mod corruption;
mod failures;
mod kill;
mod permissions;
mod proof;
mod restore;
mod roundtrip;
mod servers;
mod stalls;
mod wire;

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;

use crate::support::{
    binary::Run,
    mode::Mode,
    nats::{Nats, NatsVersion},
    proxy::TcpProxy,
    workspace::Workspace,
};

/// How long something that is on its way may take.
const SOON: Duration = Duration::from_secs(60);

/// An initialised repository in a folder, with this source.
fn initialised(mode: Mode, server: &Nats) -> Workspace {
    let workspace = Workspace::folder().mode(mode).nats(server);
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
fn restore(workspace: &Workspace, target: &Nats, more: &[&str]) -> Run {
    restore_at(workspace, &target.url_with_user(), target, more)
}

/// `restore latest` into a server by another address of it, such as a proxy's.
fn restore_at(workspace: &Workspace, url: &str, target: &Nats, more: &[&str]) -> Run {
    let target_argument = format!("messages={url}");
    let arguments = ["restore", "latest", "--yes", "--source", "messages", "--target", &target_argument];
    workspace.run(&[&arguments[..], more].concat()).env("ALTLAS_BACKUP_TARGET_MESSAGES_PASSWORD", target.password())
}

fn before(server: &Nats) -> TcpProxy {
    TcpProxy::start(SocketAddr::from(([127, 0, 0, 1], server.port())))
}

/// Puts a proxy between the program and its source.
fn through(workspace: &mut Workspace, server: &Nats, proxy: &TcpProxy) {
    workspace.set("source.0.url", format!("nats://{}@127.0.0.1:{}", server.user(), proxy.port()));
}
