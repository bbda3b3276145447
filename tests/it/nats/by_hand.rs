//! With this program gone: a manifest, `zstd`, `age` and a NATS server are enough, with a page of Python or with `tar`.

use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

use super::{SOON, back_up, initialised};
use crate::{
    by_hand::blocks_under,
    support::{
        mode::{Mode, in_both_modes},
        nats::{Nats, NatsVersion},
        wait_for,
        workspace::Workspace,
    },
};

in_both_modes! {
    the_server_s_own_restore_takes_the_parts_in_order,
}

/// Runs the README's commands that open a repository, and then those of this block, inside of the repository's folder.
fn run(workspace: &Workspace, block: &str, variables: &[(&str, &str)]) -> Output {
    let blocks = blocks_under("## Restore by hand");
    let found = blocks.iter().find(|text| text.contains(block)).unwrap_or_else(|| panic!("no block with `{block}`"));
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    Command::new("bash")
        .args(["-c", &format!("set -euo pipefail\n{}\n{found}", blocks[0])])
        .current_dir(workspace.repository_folder())
        .env_clear()
        .env("PATH", format!("{}:/usr/bin:/bin", scripts.display()))
        .env("identity", workspace.identity_file())
        .env("source", "messages")
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

fn restore_stream(workspace: &Workspace, stream: &str, target: &Nats, password: &str) -> Output {
    let server = format!("127.0.0.1:{}", target.port());
    let login = [("NATS_USER", target.user()), ("NATS_PASSWORD", password), ("server", &server), ("stream", stream)];
    run(workspace, "restore-stream", &login)
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn the_server_s_own_restore_takes_the_parts_in_order(mode: Mode) {
    // The script takes its time; each pair is tried once.
    let pairs = match mode {
        Mode::Clear => vec![(NatsVersion::V29, NatsVersion::V215)],
        Mode::Encrypted => NatsVersion::ENDS.map(|version| (version, version)).to_vec(),
    };
    for (from, to) in pairs {
        let (source, target) = (Nats::start(from), Nats::start(to));
        source.fill("altlas", 300, 1);
        source.fill("large", 900, 1);
        let workspace = initialised(mode, &source);
        back_up(&workspace);
        assert_parts(&workspace, "streams/LARGE");
        for stream in source.streams() {
            let output = restore_stream(&workspace, &stream, &target, target.password());
            assert!(output.status.success(), "{from:?} {to:?} {stream}: {}", text(&output));
            let told = format!("stream {stream}: {} messages, ", source.messages(&stream));
            assert!(String::from_utf8_lossy(&output.stdout).starts_with(&told), "{}", text(&output));
        }
        source.digest(&["--messages"]).assert_same(&target.digest(&["--messages"]));
        // It says so where it does not go.
        let again = restore_stream(&workspace, "LARGE", &target, target.password());
        assert!(!again.status.success() && text(&again).contains("the server refused: "), "{}", text(&again));
        let refused = restore_stream(&workspace, "LARGE", &target, "wrong");
        assert!(!refused.status.success() && text(&refused).contains("Authorization Violation"), "{}", text(&refused));
    }
}

/// With a token; and an archive that is cut short is told from a whole one.
#[test]
fn with_a_token_and_not_all_of_it() {
    let source = Nats::start(NatsVersion::V215);
    source.fill("large", 300, 2);
    let workspace = initialised(Mode::Clear, &source);
    back_up(&workspace);
    let target = Nats::start_as(NatsVersion::V215, crate::support::nats::Setup::new().token());
    let output = restore_stream(&workspace, "LARGE", &target, target.password());
    assert!(output.status.success(), "{}", text(&output));
    source.digest(&["--messages"]).assert_same(&target.digest(&["--messages"]));
    target.delete_stream("LARGE");

    let parts = workspace.repository_folder().join("epochs");
    let longest =
        workspace.objects().into_iter().filter(|(key, _)| key.contains("/parts/")).max_by_key(|(_, bytes)| bytes.len());
    let (key, bytes) = longest.unwrap();
    let half = zstd::decode_all(&bytes[..]).unwrap();
    let half = zstd::encode_all(&half[..half.len() / 2], 1).unwrap();
    let path = parts.join(key.strip_prefix("epochs/").unwrap());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(path, half).unwrap();
    let output = restore_stream(&workspace, "LARGE", &target, target.password());
    assert!(!output.status.success() && text(&output).contains("the server refused: "), "{}", text(&output));
}

/// Format 1 is the stream's files: they are put where the server has its own.
#[test]
fn the_parts_in_order_are_a_tar_of_the_stream_s_files() {
    for to in [NatsVersion::V29, NatsVersion::V215] {
        let source = Nats::start(NatsVersion::V29);
        source.fill("altlas", 400, 3);
        source.fill("large", 700, 3);
        let workspace = initialised(Mode::Clear, &source);
        back_up(&workspace);
        let mut target = Nats::start(to);
        target.stop();
        for stream in source.streams() {
            let folder = target.folder();
            let output = run(&workspace, "tar -x", &[("store_dir", folder.to_str().unwrap()), ("stream", &stream)]);
            assert!(output.status.success(), "{}", text(&output));
        }
        target.resume();
        wait_for("the streams", SOON, || (target.streams() == source.streams()).then_some(()));
        source.digest(&["--messages"]).assert_same(&target.digest(&["--messages"]));
    }
}

/// More than one part, or their order would not be tried.
#[track_caller]
fn assert_parts(workspace: &Workspace, path: &str) {
    let shown = workspace.run(&["--json", "show", "latest"]).ok().json();
    let artifacts = shown["sources"][0]["artifacts"].as_array().unwrap();
    let found = artifacts.iter().find(|artifact| artifact["path"] == path).unwrap();
    assert!(found["parts"].as_array().unwrap().len() > 1, "{found}");
}
