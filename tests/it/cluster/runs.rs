//! The commands of the manifests, run as they stand there (see [`super::pod`]) against real servers.
//!
//! Only root can make the places that they run in; for others these tests say so.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;

use super::pod::{Node, terminate};
use crate::support::{
    mode::{Identities, identity_file},
    nats::{Nats, NatsVersion},
    postgres::{Major, Postgres},
    receiver::Receiver,
    redis::{Redis, RedisVersion},
    s3::{BlockingS3, S3Kind},
    tools, wait_for,
};

/// How long something that is on its way may take.
const SOON: Duration = Duration::from_secs(60);

/// The servers of a deployment: one of each kind, with data, and an object store.
struct Deployment {
    database: Postgres,
    cache: Redis,
    messages: Nats,
    store: BlockingS3,
    /// In Alertmanager's place.
    receiver: Receiver,
}

const PASSWORD: &str = "a-password";

impl Deployment {
    /// The servers that the image has programs of, with the users of the README.
    fn start() -> Self {
        let deployment = Self {
            database: Postgres::start(Major::V15),
            cache: Redis::start_with(RedisVersion::V70, &["repl-diskless-sync-delay 0"]),
            messages: Nats::start(NatsVersion::V29),
            store: BlockingS3::start(S3Kind::SeaweedFs).unwrap(),
            receiver: Receiver::start(),
        };
        deployment.database.create_altlas("altlas", 500, 1);
        let role = format!("CREATE ROLE backup LOGIN PASSWORD '{PASSWORD}'; GRANT pg_read_all_data TO backup");
        deployment.database.psql("postgres", &role);
        deployment.cache.fill("altlas", 1, 1);
        let rules = "resetkeys resetchannels -@all +info +config|get +psync +replconf";
        deployment.cache.acl_user("backup", PASSWORD, rules);
        deployment.messages.fill("altlas", 200, 1);
        deployment
    }

    /// A node that reaches them, with keys of its own and every Secret.
    fn node(&self) -> Node {
        let keys = Identities::generate();
        let place = self.store.place("altlas-backups", "alt-las");
        let public = |identity: &age::x25519::Identity| identity.to_public().to_string();
        let (data, escrow, catalog) = (public(&keys.data), Identities::generate().recipient(), public(&keys.catalog));
        let local = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        Node::new([&data, &escrow, &catalog])
            .secret("altlas-backup-s3", "access-key-id", &place.access_key_id)
            .secret("altlas-backup-s3", "secret-access-key", &place.secret_access_key)
            .secret("altlas-backup-postgres", "password", PASSWORD)
            .secret("altlas-backup-redis", "password", PASSWORD)
            .secret("altlas-backup-nats", "password", self.messages.password())
            .secret("altlas-backup-catalog", "identity", &identity_file(&keys.catalog))
            .secret("altlas-backup-identity", "identity", &identity_file(&keys.data))
            .host("postgres-db", 5432, local(self.database.port()))
            .host("redis", 6379, local(self.cache.port()))
            .host("nats", 4222, local(self.messages.port()))
            .host("minio", 9000, self.store.address())
            .host("alertmanager", 9093, local(self.receiver.port()))
    }
}

fn is_left_out() -> bool {
    if !tools::is_root() {
        println!("the manifests' commands are not run: only root can make a root folder for them");
    }
    !tools::is_root()
}

/// The newest backup and its verdict, as the observer's pod sees them.
#[track_caller]
fn newest(node: &Node) -> Value {
    let listed = node.pod("observer").run_other(&["altlas-backup", "--json", "list"]).ok().json();
    listed["backups"][0].clone()
}

#[test]
fn the_cron_jobs_as_rendered_back_up_and_verify() {
    if is_left_out() {
        return;
    }
    let mut deployment = Deployment::start();
    let node = deployment.node();

    // A repository is made once, by whoever sets it up.
    let refused = node.pod("backup").run().output().assert_code(1);
    assert!(refused.stderr.contains("altlas-backup init"), "{}", refused.text());
    node.pod("backup").run_other(&["altlas-backup", "init"]).ok();
    node.pod("backup").run_other(&["altlas-backup", "doctor"]).ok();

    let backup = node.pod("backup");
    let text = backup.run().ok().stdout;
    assert!(text.contains("complete"), "{text}");
    assert_eq!(backup.left_in("tmp"), [""; 0]);

    let before = ["postgres-db", "redis", "nats"].map(|name| node.connections(name));
    let verify = node.pod("verify");
    let text = verify.run().ok().stdout;
    assert!(text.matches("verified ").count() == 3 && text.contains("VERIFIED"), "{text}");
    assert_eq!(verify.left_in("scratch"), [""; 0]);
    assert_eq!(verify.left_in("tmp"), [""; 0]);
    assert_eq!(["postgres-db", "redis", "nats"].map(|name| node.connections(name)), before, "no live server was asked");
    let seen = newest(&node);
    assert_eq!((&seen["status"], &seen["verdict"]), (&"good".into(), &"verified".into()), "{seen}");

    // A deadline ends a pod's first process by SIGTERM; nothing is left, and nothing was found out.
    let ended = node.pod("verify");
    let running = ended.run().spawn();
    wait_for("a throwaway server's folder", SOON, || (!ended.left_in("scratch").is_empty()).then_some(()));
    terminate(&running);
    running.wait().assert_code(130);
    assert_eq!(ended.left_in("scratch"), [""; 0]);
    assert_eq!(newest(&node)["verdict"], "verified");

    // Nothing is old enough to go.
    node.pod("prune").run().ok();
    assert_eq!(newest(&node)["verdict"], "verified");

    // What is done in part has failed: an exit code that is not 0 is a failed Job.
    deployment.cache.stop();
    deployment.receiver.take();
    let partial = node.pod("backup").run().output().assert_code(5);
    assert!(partial.stdout.contains("PARTIAL"), "{}", partial.text());
    let told = deployment.receiver.take();
    assert!(
        told.iter().any(|told| told.path == "/api/v2/alerts" && told.body.to_string().contains("cache")),
        "{told:?}"
    );
}

#[test]
fn the_observer_as_rendered_answers_its_probes_and_prometheus() {
    if is_left_out() {
        return;
    }
    let deployment = Deployment::start();
    let node = deployment.node();
    let pod = node.pod("observer");
    // Without a repository it lives and is not ready.
    let observer = pod.run().spawn();
    wait_for("the observer to live", SOON, || (node.probe("livenessProbe")?.0 == 200).then_some(()));
    let (status, why) = node.probe("readinessProbe").unwrap();
    assert_eq!(status, 503, "{why}");
    terminate(&observer);
    observer.wait().assert_code(0);

    node.pod("backup").run_other(&["altlas-backup", "init"]).ok();
    node.pod("backup").run().ok();
    node.pod("verify").run().ok();
    let observer = pod.run().spawn();
    wait_for("the observer to be ready", SOON, || (node.probe("readinessProbe")?.0 == 200).then_some(()));
    let (_, metrics) = node.get("/metrics").unwrap();
    for source in ["database", "cache", "messages"] {
        let line = format!("altlas_backup_last_verified_timestamp_seconds{{source=\"{source}\"}} ");
        assert!(metrics.lines().any(|found| found.starts_with(&line)), "`{line}` is not in\n{metrics}");
    }
    terminate(&observer);
    observer.wait().assert_code(0);
    assert_eq!(newest(&node)["verdict"], "verified", "it ran nothing");
}

/// The scratch path as the user of the image, who is nobody else, with a root that cannot be written to.
#[test]
fn a_throwaway_postgresql_needs_its_user_s_name_and_its_own_folder_only() {
    if is_left_out() {
        return;
    }
    let deployment = Deployment::start();
    let node = deployment.node();
    node.pod("backup").run_other(&["altlas-backup", "init"]).ok();
    node.pod("backup").run().ok();

    let verify = node.pod("verify");
    let writable =
        verify.run_other(&["find", "/", "-path", "/proc", "-prune", "-o", "-type", "d", "-writable", "-print"]);
    let writable = writable.output().stdout;
    let mut writable: Vec<&str> = writable.lines().collect();
    writable.sort_unstable();
    assert_eq!(writable, ["/dev/shm", "/scratch", "/tmp"]);
    let user = verify
        .run_other(&["sh", "-c", "id; grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs' /proc/self/status"])
        .ok()
        .stdout;
    assert!(user.starts_with("uid=10001(altlas) gid=10001 groups=10001\n"), "{user}");
    assert_eq!(user.matches("\t0000000000000000\n").count(), 5, "{user}");
    assert!(user.ends_with("NoNewPrivs:\t1\n"), "{user}");
    verify.run().ok();

    let nameless = node.pod("verify").without_name();
    let output = nameless.run().output().assert_code(4);
    for words in ["could not look up effective user ID 10001", "initdb needs the user that it runs as in /etc/passwd"] {
        assert!(output.stdout.contains(words), "`{words}`: {}", output.text());
    }
    assert_eq!(nameless.left_in("scratch"), [""; 0]);
    // What could not be found out takes nothing back.
    let seen = newest(&node);
    assert_eq!(seen["verdict"], "verified", "{seen}");
}
