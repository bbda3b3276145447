//! With this program gone: a manifest, `zstd`, `age` and a Redis server are enough.

use std::{fs, process::Command};

use super::{DISKLESS, MARGIN, TARGET, back_up, initialised};
use crate::support::{
    mode::{Mode, in_both_modes},
    redis::{Redis, RedisVersion, ms_from_now},
};

in_both_modes! {
    the_parts_in_order_are_the_file_that_a_server_loads,
}

/// As a person does it; the README shows it for PostgreSQL.
const BY_HAND: &str = r#"
backup=$(ls backups | tail -n 1)
manifest=$(ls "backups/$backup"/cache.manifest.json.zst*)
suffix=${manifest#*.zst}
open() { case "$1" in *.age) age -d -i "$identity" "$1" ;; *) cat "$1" ;; esac | zstd -dcq; }
open "$manifest" | jq -r --arg suffix "$suffix" '.epoch as $epoch | .artifacts[] | select(.path == "dump.rdb")
    | .parts[].name | "epochs/\($epoch)/parts/\(.[0:2])/\(.).zst\($suffix)"' |
    while read -r part; do open "$part"; done >"$file"
"#;

fn the_parts_in_order_are_the_file_that_a_server_loads(mode: Mode) {
    let source = Redis::start_with(RedisVersion::V70, DISKLESS);
    source.fill("types", 1, 1);
    source.fill("big", 30, 1);
    let workspace = initialised(mode, &source);
    let report = back_up(&workspace);
    assert!(
        report["parts"].as_u64().unwrap() > 3,
        "in more than one part, or their order would not be tried: {report}"
    );
    let file = workspace.path("by-hand.rdb");
    let output = Command::new("bash")
        .args(["-c", &format!("set -euo pipefail{BY_HAND}")])
        .current_dir(workspace.repository_folder())
        .env("identity", workspace.identity_file())
        .env("file", &file)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let written = workspace.path("written.rdb");
    super::to_rdb(&workspace, &written, &[]).ok();
    assert!(fs::read(&file).unwrap() == fs::read(&written).unwrap(), "the file that the program writes is the same");
    let loaded = Redis::start_on(RedisVersion::V70, &file, TARGET);
    let horizon = ms_from_now(MARGIN);
    source.digest_beyond(horizon, RedisVersion::V70).assert_same(&loaded.digest_beyond(horizon, RedisVersion::V70));
}
