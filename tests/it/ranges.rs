//! Large tables, read in ranges by several connections: nothing is lost, nothing is there twice, and parts are what they would be had one read all of it.

use std::time::Duration;

use serde_json::Value;

use crate::support::{
    postgres::{Major, Postgres},
    wait_for,
    workspace::Workspace,
};

/// A heap of which no range is alike, with rows that were deleted and moved, and long values beside it.
fn create(server: &Postgres) {
    server.psql("postgres", "CREATE DATABASE altlas TEMPLATE template0 ENCODING 'UTF8'");
    server.psql(
        "altlas",
        "CREATE TABLE large (id bigint, at timestamptz, t text, note text);
         INSERT INTO large SELECT g, timestamptz '2026-01-01' + g * interval '1 s', md5(g::text) || md5((g + 1)::text) || md5((g + 2)::text),
             repeat('x', (g % 200)::int) FROM generate_series(1, 900000) g;
         DELETE FROM large WHERE id % 17 = 0; UPDATE large SET note = 'moved' WHERE id % 1000 = 1;
         CREATE TABLE long_values (id int, t text); ALTER TABLE long_values ALTER t SET STORAGE EXTERNAL;
         INSERT INTO long_values SELECT g, (SELECT string_agg(md5((g * 10000 + n)::text), '') FROM generate_series(1, 1500) n) FROM generate_series(1, 2500) g;
         CREATE TABLE composite (id int, l large); INSERT INTO composite SELECT id::int, l FROM large l WHERE id < 1000",
    );
}

fn back_up(workspace: &Workspace) -> Value {
    let report = workspace.run(&["--json", "backup"]).ok().json();
    assert_eq!(report["state"], "complete", "{report}");
    report["sources"][0].clone()
}

#[test]
fn borders_leave_no_trace_and_every_row_comes_back() {
    let source = Postgres::start(Major::V15);
    create(&source);
    let mut workspace = Workspace::folder().postgres(&source, &["altlas"]);
    for (format, name) in [("binary", "copy-binary"), ("text", "copy-text")] {
        workspace.set("source.0.copy_format", format);
        workspace.set("source.0.workers", 8_i64);
        if format == "binary" {
            workspace.run(&["init"]).ok();
        }
        let first = back_up(&workspace);
        assert!(first["new_parts"].as_u64().unwrap() > 20, "{first}");
        let shown = workspace.run(&["--json", "show", "latest"]).ok().json();
        let of = |table: &str| {
            let path = format!("databases/altlas/tables/public.{table}");
            let artifacts = shown["sources"][0]["artifacts"].as_array().unwrap();
            artifacts.iter().find(|artifact| artifact["path"] == *path).unwrap()["format"].clone()
        };
        // A composite type's binary form has OIDs in it.
        assert_eq!((of("large"), of("long_values"), of("composite")), (name.into(), name.into(), "copy-text".into()));
        // However many read it, and wherever they began.
        for workers in [1_i64, 3, 8] {
            workspace.set("source.0.workers", workers);
            let again = back_up(&workspace);
            assert_eq!(again["new_parts"], 0, "{format} by {workers}: {again}");
        }
        workspace.run(&["verify", "latest", "--level", "content"]).ok();
        let target = Postgres::start(Major::V15);
        workspace.restore_into(&target, &[]).ok();
        assert_eq!(source.digests("altlas"), target.digests("altlas"), "{format}");
    }
    // Rows in the same order on other pages.
    source.psql("altlas", "VACUUM FULL large");
    workspace.set("source.0.workers", 8_i64);
    assert_eq!(back_up(&workspace)["new_parts"], 0);
}

#[test]
fn some_tables_come_back_beside_the_others() {
    let source = Postgres::start(Major::V15);
    source.create_altlas("altlas", 300, 1);
    source.psql(
        "altlas",
        "CREATE SCHEMA audit; CREATE TABLE audit.log (id int PRIMARY KEY); INSERT INTO audit.log SELECT generate_series(1, 20);
         CREATE TABLE audit.of_log (id int REFERENCES audit.log); INSERT INTO audit.of_log VALUES (1), (2);
         CREATE TABLE public.tmp_things (id int); INSERT INTO public.tmp_things VALUES (1)",
    );
    let mut workspace = Workspace::folder().postgres(&source, &["altlas"]);
    workspace.set("source.0.exclude_tables", vec!["public.tmp_*"]);
    workspace.run(&["init"]).ok();
    let uncovered = || back_up(&workspace)["uncovered"].as_array().unwrap().len();
    assert_eq!(uncovered(), 1);
    let verified = workspace.run(&["verify", "latest"]).output();
    assert_eq!(verified.code, Some(0), "{}", verified.text());

    let target = Postgres::start(Major::V15);
    let restore = |more: &[&str]| workspace.restore_into(&target, more).output();
    let output = restore(&["--table", "audit.of_*", "--table", "public.tags", "--database", "altlas=rescued"]);
    assert_eq!(output.code, Some(0), "{}", output.text());
    assert!(output.text().contains("only the rows of 2 tables"), "{}", output.text());
    let count = |table: &str| target.psql("rescued", &format!("SELECT count(*) FROM {table}"));
    assert_eq!(
        (count("audit.of_log"), count("audit.log"), count("public.tmp_things")),
        ("2".into(), "0".into(), "0".into())
    );
    assert_eq!(count("public.tags"), source.psql("altlas", "SELECT count(*) FROM public.tags"));
    assert_eq!(
        target.psql("rescued", "SELECT convalidated FROM pg_constraint WHERE conrelid = 'audit.of_log'::regclass"),
        "f"
    );
    // Never in the place of what is whole.
    let output = restore(&["--table", "audit.of_*", "--database", "altlas=rescued", "--overwrite"]);
    assert_eq!(output.code, Some(6), "{}", output.text());
    let output = restore(&["--table", "no.such", "--database", "altlas=other"]);
    assert!(
        output.code == Some(1) && output.text().contains("no table fits the pattern `no.such`"),
        "{}",
        output.text()
    );

    // Whatever refers to what is left out.
    workspace.set("source.0.exclude_tables", vec!["audit.log"]);
    let output = workspace.run(&["backup"]).output();
    assert!(output.code == Some(1) && output.text().contains("audit.of_log"), "{}", output.text());
    workspace.set("source.0.exclude_tables", vec!["audit.*", "public.tmp_*"]);
    let uncovered = back_up(&workspace)["uncovered"].clone();
    assert!(uncovered.as_array().unwrap().len() == 3 && uncovered.to_string().contains("audit.of_log"), "{uncovered}");
    workspace.set("source.0.tables", vec!["public.*", "nothing.*"]);
    let output = workspace.run(&["backup"]).output();
    assert!(output.code == Some(1) && output.text().contains("`nothing.*`"), "{}", output.text());
}

/// A standby has none of an unlogged table's rows, nor its sequence's position; all else is backed up from there.
#[test]
fn a_standby_tells_what_it_does_not_have() {
    let source = Postgres::start(Major::V15);
    source.create_altlas("altlas", 100, 1);
    source.psql(
        "altlas",
        "CREATE UNLOGGED TABLE passing (id serial PRIMARY KEY, t text); INSERT INTO passing (t) VALUES ('x')",
    );
    let standby = source.standby();
    wait_for("the standby to have the table", Duration::from_secs(20), || {
        standby.try_psql("altlas", "SELECT 'passing'::regclass").ok()
    });
    let workspace = Workspace::folder().postgres(&standby, &["altlas"]);
    workspace.run(&["init"]).ok();
    let uncovered = back_up(&workspace)["uncovered"].clone();
    let told = uncovered.to_string();
    assert_eq!(uncovered.as_array().unwrap().len(), 2, "{told}");
    assert!(told.contains("rows of table public.passing") && told.contains("sequence public.passing_id_seq"), "{told}");
    let verified = workspace.run(&["verify", "latest"]).output();
    assert_eq!(verified.code, Some(0), "{}", verified.text());
}
