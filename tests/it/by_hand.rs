//! Line 4: the commands that the README shows for a restore without this program give the same table.

use std::{path::Path, process::Command};

use crate::support::{
    binary::Run,
    postgres::{Major, Postgres},
    tools,
    workspace::Workspace,
};

/// The blocks of shell commands in this chapter of the README, in their order.
pub(crate) fn blocks_under(heading: &str) -> Vec<String> {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let below =
        readme.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("the README has no `{heading}`")).1;
    let chapter = below.split_once("\n## ").unwrap().0;
    chapter.split("```sh\n").skip(1).map(|block| block.split_once("```").unwrap().0.to_owned()).collect()
}

#[test]
fn the_readme_s_commands_restore_a_table() {
    restores_a_table(Workspace::folder(), Path::new("/nonexistent"));
}

#[test]
fn the_readme_s_commands_restore_an_encrypted_table() {
    let mut workspace = Workspace::folder();
    let keygen = |name: &str| {
        let path = workspace.path(name);
        let made = Run::new(&["keygen", "--output", path.to_str().unwrap()]).ok();
        (made.stdout.trim().to_owned(), path)
    };
    let ((ours, identity), (escrow, escrow_file), (_, catalog)) =
        (keygen("identity"), keygen("escrow"), keygen("catalog"));
    workspace.set("repository.encryption.recipients", vec![ours, escrow]);
    workspace.set("repository.encryption.catalog_identity_file", catalog.display().to_string());
    // The program has the one identity, the person by hand the other.
    workspace.set("repository.encryption.identity_file", identity.display().to_string());
    restores_a_table(workspace, &escrow_file);
}

fn restores_a_table(workspace: Workspace, identity: &Path) {
    let source = Postgres::start(Major::V15);
    // More bytes than a part may have: there are several.
    source.create_altlas("altlas", 80_000, 3);
    source.psql("altlas", "SELECT lo_from_bytea(4711, decode(repeat('00ff5c0a', 50000), 'hex')), lo_create(4712)");
    let workspace = workspace.postgres(&source, &["altlas"]);
    workspace.run(&["init"]).ok();
    workspace.run(&["backup"]).ok();

    let target = Postgres::start(Major::V15);
    target.psql("postgres", "CREATE ROLE altlas; CREATE ROLE altlas_reader");
    target.psql("postgres", "CREATE DATABASE altlas OWNER altlas");
    // The commands that open a repository, and PostgreSQL's.
    let script = format!("set -euo pipefail\n{}", blocks_under("## Restore by hand")[..2].join("\n"));
    let output = Command::new("bash")
        .arg("-c")
        .arg(&script)
        .current_dir(workspace.repository_folder())
        .env("identity", identity)
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", target.port().to_string())
        .env("PGUSER", "postgres")
        .env("PGPASSWORD", target.password())
        .env("PATH", format!("{}:/usr/bin:/bin", tools::client_folder(Major::V15).display()))
        .output()
        .unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script}\n{told}");
    let objects = "SELECT oid, md5(lo_get(oid)) FROM pg_largeobject_metadata ORDER BY oid";
    assert_eq!(source.psql("altlas", objects), target.psql("altlas", objects), "{told}");
    let (was, is) = (source.digests("altlas"), target.digests("altlas"));
    assert_eq!(was["public.last_files"], is["public.last_files"], "{told}");
    assert!(was["public.last_files"].0 == 80_000);
    // More than one part, or the order would not be tried.
    let shown = workspace.run(&["--json", "show", "latest"]).ok().json();
    let artifacts = shown["sources"][0]["artifacts"].as_array().unwrap();
    let table =
        artifacts.iter().find(|artifact| artifact["path"] == "databases/altlas/tables/public.last_files").unwrap();
    assert!(table["parts"].as_array().unwrap().len() > 1, "{}", table["parts"]);
}
