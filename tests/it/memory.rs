//! Line 9: memory does not grow with the data. `scripts/bench memory` is the long form, with gigabytes.

use crate::support::{
    mode::Mode,
    postgres::{Major, Postgres},
    workspace::Workspace,
};

/// What a run may take, in bytes: the budget of 128 MiB for data under way, and as much for everything else.
const BOUND: u64 = 256 * 1024 * 1024;

#[test]
fn more_data_than_may_be_held() {
    let source = Postgres::start(Major::V15);
    source.psql("postgres", "CREATE DATABASE altlas TEMPLATE template0 ENCODING 'UTF8'");
    // Random hex compresses to half at best: as much is under way as can be.
    let rows = "SELECT g, string_agg(md5(g::text || i::text), '') FROM generate_series(1, 18000) g, \
                generate_series(1, 500) i GROUP BY g";
    source.psql("altlas", &format!("CREATE TABLE bulk (id, text) AS {rows}"));
    for mode in [Mode::Clear, Mode::Encrypted] {
        in_mode(mode, &source);
    }
}

fn in_mode(mode: Mode, source: &Postgres) {
    let workspace = Workspace::folder().mode(mode).postgres(source, &["altlas"]);
    workspace.run(&["init"]).ok();
    let target = Postgres::start(Major::V15);
    let address = format!("database={}", target.url("postgres"));
    let restore = ["restore", "latest", "--yes", "--target", &address];
    for arguments in [&["backup"][..], &["verify", "latest", "--level", "content"], &restore] {
        let run = workspace.run(arguments).env("ALTLAS_BACKUP_TARGET_DATABASE_PASSWORD", target.password());
        let output = run.ok();
        println!("{}: {} MiB", arguments[0], output.peak_memory >> 20);
        assert!((1..BOUND).contains(&output.peak_memory), "{}: {} bytes", arguments[0], output.peak_memory);
    }
    let raw =
        workspace.run(&["--json", "list"]).ok().json()["backups"][0]["head"]["sources"][0]["sizes"]["raw"].as_u64();
    assert!(raw.unwrap() > BOUND, "{raw:?} bytes are no test");
}
