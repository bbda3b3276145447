//! With this program gone: a manifest, `zstd`, `age` and a Redis server are enough.

use std::{fs, process::Command};

use super::{DISKLESS, MARGIN, TARGET, back_up, initialised};
use crate::{
    by_hand::blocks_under,
    support::{
        mode::{Mode, in_both_modes},
        redis::{Redis, RedisVersion, ms_from_now},
    },
};

in_both_modes! {
    the_parts_in_order_are_the_file_that_a_server_loads,
}

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
    let blocks = blocks_under("## Restore by hand");
    let file = workspace.repository_folder().join("dump.rdb");
    let output = Command::new("bash")
        .args(["-c", &format!("set -euo pipefail\n{}\n{}", blocks[0], blocks[2])])
        .current_dir(workspace.repository_folder())
        .env("identity", workspace.identity_file())
        .env("source", "cache")
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
