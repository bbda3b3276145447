//! TLS to PostgreSQL: ours and that of its own programs.

use std::{fs, os::unix::fs::PermissionsExt};

use crate::support::{
    postgres::{Major, Postgres, give_to_postgres},
    s3::Certificates,
    temp_folder,
    workspace::Workspace,
};

#[test]
fn every_connection_is_verified_and_encrypted() {
    let certificates = Certificates::make();
    let folder = temp_folder();
    for name in ["public.crt", "private.key", "ca.crt"] {
        let path = folder.path().join(name);
        fs::copy(certificates.path(name), &path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        if name == "private.key" {
            give_to_postgres(&path);
        } else {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        }
    }
    let shown = |name: &str| folder.path().join(name).display().to_string();
    let server = Postgres::start(Major::V15);
    server.create_altlas("altlas", 100, 1);
    for setting in [
        format!("ssl_cert_file = '{}'", shown("public.crt")),
        format!("ssl_key_file = '{}'", shown("private.key")),
        "ssl = on".to_owned(),
        "log_connections = on".to_owned(),
    ] {
        server.psql("postgres", &format!("ALTER SYSTEM SET {setting}"));
    }
    server.psql("postgres", "SELECT pg_reload_conf()");

    let mut workspace = Workspace::folder().postgres(&server, &["altlas"]);
    workspace.run(&["init"]).ok();
    workspace.set("source.0.tls", "verify-full");
    workspace.set("source.0.ca_file", shown("ca.crt"));
    workspace.run(&["backup"]).ok();
    let log = server.log();
    let ours: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("connection authorized") && line.contains("application_name=altlas-backup"))
        .collect();
    // The holder, the maintenance session, workers, pg_dumpall and three times pg_dump.
    assert!(ours.len() >= 7, "{ours:#?}");
    assert!(ours.iter().all(|line| line.contains("SSL enabled")), "{ours:#?}");

    // Another authority is not believed; without checking, anyone is.
    let other = Certificates::make();
    workspace.set("source.0.ca_file", other.path("ca.crt"));
    workspace.run(&["backup"]).output().assert_error(1, &["TLS", "127.0.0.1"]);
    workspace.table["source"][0].as_table_mut().unwrap().remove("ca_file");
    workspace.set("source.0.tls", "require");
    workspace.run(&["backup"]).ok();
}
