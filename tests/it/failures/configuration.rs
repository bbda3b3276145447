//! Mistakes in the configuration and in arguments.

use std::path::Path;

use super::{Failure, assert_nothing_recorded, create_small, initialised};
use crate::support::{
    binary::{Output, Run},
    postgres::{Major, Postgres},
    workspace::Workspace,
};

#[test]
fn mistakes_in_the_configuration() {
    let config = |code, words: &[&str], hint: &str, run: &dyn Fn() -> Run| {
        Failure { code, kind: "config", words, hint }.of(run);
    };
    let workspace = |path: &str, value: toml::Value| {
        let mut workspace = Workspace::folder().postgres_as(
            "database",
            "postgres://backup@127.0.0.1:1/postgres",
            Path::new("/nonexistent"),
            &["*"],
        );
        workspace.set(path, value);
        workspace
    };
    config(2, &["no configuration file", "./altlas-backup.toml"], "--config", &|| Run::new(&["backup"]));
    config(2, &["/nonexistent/c.toml", "No such file"], "", &|| Run::new(&["backup"]).config("/nonexistent/c.toml"));
    let env = || Run::new(&["backup"]).env("ALTLAS_BACKUP_CONFIG", "/nonexistent/d.toml");
    config(2, &["/nonexistent/d.toml"], "", &env);

    let unknown = workspace("repository.urll", "file:///tmp".into());
    config(2, &["altlas-backup.toml:", "`repository.urll`", "unknown key"], "did you mean `repository.url`?", &|| {
        unknown.run(&["backup"])
    });
    let unknown = workspace("source.0.pasword_file", "x".into());
    config(2, &["`source[0].pasword_file`"], "`source.password_file`", &|| unknown.run(&["backup"]));
    let bad = workspace("source.0.workers", 0.into());
    config(2, &["altlas-backup.toml:", "`source[0].workers`", "16"], "", &|| bad.run(&["backup"]));
    let bad = workspace("source.0.lock_timeout", "soon".into());
    config(2, &["`source[0].lock_timeout`"], "", &|| bad.run(&["backup"]));
    let bad = workspace("repository.url", "ftp://host/x".into());
    config(2, &["`repository.url`"], "s3://", &|| bad.run(&["list"]));
    let bad = workspace("source.0.name", 5.into());
    config(2, &["`source[0].name`", "expected", "integer"], "", &|| bad.run(&["backup"]));

    // Both are told, and told apart.
    let mut two = workspace("source.0.workers", 99.into());
    two.set("repository.grase", "72h");
    config(2, &["2 problems", "`source[0].workers`", "`repository.grase`"], "repository.grace", &|| {
        two.run(&["backup"])
    });

    // A secret that is not there.
    let missing = workspace("source.0.tls", "disable".into());
    missing.run(&["init"]).ok();
    config(2, &["/nonexistent", "`source[0].password_file`"], "", &|| missing.run(&["backup"]));
    assert_nothing_recorded(&missing);

    // No such source, wrong arguments.
    config(2, &["`other`"], "database", &|| missing.run(&["backup", "--source", "other"]));
    missing.run(&["backup", "--sauce", "x"]).output().assert_code(2);
    let usage = missing.run(&["--json", "backup", "--sauce", "x"]).output().assert_code(2);
    assert_eq!(usage.json()["error"]["kind"], "usage", "{}", usage.text());
}

#[test]
fn a_password_in_a_url_is_refused_and_not_repeated() {
    const SECRET: &str = "hunter2";
    let refused = Failure { code: 2, kind: "config", words: &["secret"], hint: "" };
    let check = |run: &dyn Fn() -> Run, words: &[&str]| {
        refused.of(run);
        let output = run().output().assert_error(2, words);
        assert!(!output.text().replace(&shown_command(&output), "").contains(SECRET), "{}", output.text());
    };
    let server = Postgres::start(Major::V15);
    create_small(&server, "one");
    let mut workspace = initialised(&server, &["one"]);
    workspace.run(&["backup"]).ok();
    let target = format!("database=postgres://postgres:{SECRET}@127.0.0.1:5432/postgres");
    check(&|| workspace.run(&["restore", "latest", "--target", &target]), &["--target"]);
    let repository = format!("s3://key:{SECRET}@bucket/prefix");
    check(&|| workspace.run(&["list", "--repository", &repository]), &["`--repository`"]);

    workspace.set("source.0.url", format!("postgres://postgres:{SECRET}@127.0.0.1:5432/postgres"));
    check(&|| workspace.run(&["backup"]), &["`source[0].url`", "password_file"]);
    workspace.set("source.0.url", format!("postgres://postgres@127.0.0.1/postgres?password={SECRET}"));
    check(&|| workspace.run(&["backup"]), &["`source[0].url`"]);
    workspace.set("source.0.url", server.url("postgres"));
    workspace.set("repository.url", format!("s3://key:{SECRET}@bucket/prefix"));
    check(&|| workspace.run(&["list"]), &["`repository.url`"]);
}

/// The first line of an output's text, which repeats the arguments.
fn shown_command(output: &Output) -> String {
    output.text().lines().next().unwrap_or_default().to_owned()
}
