//! Each rule can fail: one thing of each kind is broken in a copy of the manifests, and the rule says so.

use serde_json::{Value, json};

use super::{flows, objects::Objects, rules};

/// What is broken, how, and what is said of it.
type Mutation = (&'static str, fn(&mut Objects), &'static str);

fn pod<'a>(objects: &'a mut Objects, name: &str) -> &'a mut Value {
    let owner = objects
        .0
        .iter_mut()
        .find(|object| object["metadata"]["name"] == name && object["spec"].is_object() && object["kind"] != "Service");
    let owner = owner.unwrap();
    if owner["kind"] == "CronJob" {
        &mut owner["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    } else {
        &mut owner["spec"]["template"]["spec"]
    }
}

fn container<'a>(objects: &'a mut Objects, name: &str) -> &'a mut Value {
    &mut pod(objects, name)["containers"][0]
}

fn cron<'a>(objects: &'a mut Objects, name: &str) -> &'a mut Value {
    &mut objects.get_mut("CronJob", name)["spec"]
}

fn policy<'a>(objects: &'a mut Objects, name: &str) -> &'a mut Value {
    &mut objects.get_mut("NetworkPolicy", name)["spec"]
}

fn remove(value: &mut Value, field: &str) {
    value.as_object_mut().unwrap().remove(field).unwrap();
}

fn drop_object(objects: &mut Objects, kind: &str, name: &str) {
    let before = objects.0.len();
    objects.0.retain(|object| object["kind"] != kind || object["metadata"]["name"] != name);
    assert_eq!(objects.0.len() + 1, before);
}

/// Changes the configuration's text.
fn configure(objects: &mut Objects, from: &str, to: &str) {
    let map = objects.0.iter_mut().find(|object| object["kind"] == "ConfigMap").unwrap();
    let text = &mut map["data"]["altlas-backup.toml"];
    assert_eq!(text.as_str().unwrap().matches(from).count(), 1, "{from}");
    *text = text.as_str().unwrap().replace(from, to).into();
}

const BACKUP: &str = "altlas-backup";
const VERIFY: &str = "altlas-backup-verify";
const PRUNE: &str = "altlas-backup-prune";
const OBSERVER: &str = "altlas-backup-observer";

const MUTATIONS: &[Mutation] = &[
    (
        "a Job",
        |o| {
            o.0.push(json!({"kind": "Job", "metadata": {"name": "restore", "namespace": "alt-las"}, "spec": {"template": {"metadata": {}, "spec": {}}}}))
        },
        "Job/restore is applied",
    ),
    (
        "a Secret",
        |o| o.0.push(json!({"kind": "Secret", "metadata": {"name": "s", "namespace": "alt-las"}})),
        "Secret/s is applied",
    ),
    (
        "a namespace",
        |o| o.0[0]["metadata"]["namespace"] = "default".into(),
        "ServiceAccount/altlas-backup is elsewhere",
    ),
    (
        "a policy's type",
        |o| policy(o, "altlas-backup-deny")["policyTypes"][0] = "Ingres".into(),
        "`Ingres` is no policyTypes",
    ),
    (
        "a protocol",
        |o| policy(o, "altlas-backup-dns")["egress"][0]["ports"][0]["protocol"] = "udp".into(),
        "`udp` is no protocol",
    ),
    ("a medium", |o| pod(o, VERIFY)["volumes"][3]["emptyDir"]["medium"] = "memory".into(), "`memory` is no medium"),
    (
        "a profile's word",
        |o| pod(o, PRUNE)["securityContext"]["seccompProfile"]["type"] = "Default".into(),
        "`Default` is no seccompProfile",
    ),
    (
        "an account",
        |o| drop_object(o, "ServiceAccount", "altlas-backup"),
        "there is no ServiceAccount \"altlas-backup\"",
    ),
    (
        "a ConfigMap's name",
        |o| pod(o, BACKUP)["volumes"][0]["configMap"]["name"] = "altlas-backup-config".into(),
        "there is no ConfigMap \"altlas-backup-config\"",
    ),
    (
        "a Secret's name",
        |o| pod(o, BACKUP)["volumes"][1]["secret"]["secretName"] = "s3".into(),
        "there is no Secret \"s3\"",
    ),
    (
        "a Secret's key",
        |o| pod(o, BACKUP)["volumes"][1]["secret"]["items"][0]["key"] = "id".into(),
        "has no key \"id\"",
    ),
    (
        "all keys of a Secret",
        |o| remove(&mut pod(o, BACKUP)["volumes"][1]["secret"], "items"),
        "mounts every key of its Secret",
    ),
    (
        "a secret that is not for it",
        |o| pod(o, BACKUP)["volumes"][5]["secret"]["secretName"] = "altlas-backup-identity".into(),
        "Secret \"altlas-backup-identity\" is not for it",
    ),
    (
        "a secret in the environment",
        |o| {
            container(o, PRUNE)["env"][0] =
                json!({"name": "X", "valueFrom": {"secretKeyRef": {"name": "x", "key": "y"}}})
        },
        "there is no Secret \"x\"",
    ),
    (
        "a claim",
        |o| {
            pod(o, VERIFY)["volumes"][3] = json!({"name": "scratch", "persistentVolumeClaim": {"claimName": "scratch"}})
        },
        "there is no PersistentVolumeClaim \"scratch\"",
    ),
    (
        "a mount's volume",
        |o| container(o, OBSERVER)["volumeMounts"][0]["name"] = "configuration".into(),
        "there is no volume \"configuration\"",
    ),
    ("a volume's mount", |o| remove(container(o, OBSERVER), "volumeMounts"), "volume \"tmp\" is mounted nowhere"),
    ("the host's network", |o| pod(o, BACKUP)["hostNetwork"] = true.into(), "hostNetwork is set"),
    (
        "a folder of the host",
        |o| pod(o, BACKUP)["volumes"][6] = json!({"name": "tmp", "hostPath": {"path": "/tmp"}}),
        "a volume of kind hostPath",
    ),
    (
        "a Secret's mode",
        |o| pod(o, BACKUP)["volumes"][1]["secret"]["defaultMode"] = 0o644.into(),
        "mode 420 of a Secret's files",
    ),
    (
        "a volume's size",
        |o| remove(&mut pod(o, BACKUP)["volumes"][6]["emptyDir"], "sizeLimit"),
        "volume \"tmp\" may grow without end",
    ),
    (
        "a sysctl",
        |o| pod(o, BACKUP)["securityContext"]["sysctls"] = json!([{"name": "a", "value": "b"}]),
        "sysctls are set",
    ),
    ("privileges", |o| container(o, BACKUP)["securityContext"]["privileged"] = true.into(), "privileged"),
    (
        "escalation",
        |o| remove(&mut container(o, BACKUP)["securityContext"], "allowPrivilegeEscalation"),
        "allowPrivilegeEscalation is not false",
    ),
    ("root", |o| remove(&mut pod(o, PRUNE)["securityContext"], "runAsNonRoot"), "runAsNonRoot is not true"),
    ("the user", |o| container(o, PRUNE)["securityContext"]["runAsUser"] = 0.into(), "runAsUser is not 10001"),
    (
        "a profile",
        |o| container(o, PRUNE)["securityContext"]["seccompProfile"] = json!({"type": "Unconfined"}),
        "seccompProfile is not RuntimeDefault",
    ),
    (
        "capabilities",
        |o| container(o, VERIFY)["securityContext"]["capabilities"]["drop"] = json!(["NET_RAW"]),
        "not all capabilities are dropped",
    ),
    (
        "a capability",
        |o| container(o, VERIFY)["securityContext"]["capabilities"]["add"] = json!(["SYS_PTRACE"]),
        "capabilities are added",
    ),
    ("a port of the host", |o| container(o, OBSERVER)["ports"][0]["hostPort"] = 9187.into(), "a port of the host's"),
    ("a process's mount", |o| container(o, OBSERVER)["securityContext"]["procMount"] = "Unmasked".into(), "procMount"),
    (
        "a root that can be written to",
        |o| container(o, VERIFY)["securityContext"]["readOnlyRootFilesystem"] = false.into(),
        "its root can be written to",
    ),
    (
        "a container that runs first",
        |o| pod(o, BACKUP)["initContainers"] = json!([{"name": "first", "image": "busybox"}]),
        "container first: allowPrivilegeEscalation is not false",
    ),
    ("a limit", |o| remove(&mut container(o, PRUNE)["resources"], "limits"), "no request or limit of memory"),
    ("an image", |o| container(o, PRUNE)["image"] = "altlas-backup:latest".into(), "image altlas-backup:latest"),
    ("the group", |o| remove(&mut pod(o, BACKUP)["securityContext"], "fsGroup"), "its group cannot read"),
    ("a token", |o| remove(pod(o, BACKUP), "automountServiceAccountToken"), "it gets a token"),
    ("service links", |o| remove(pod(o, BACKUP), "enableServiceLinks"), "it gets other services' variables"),
    (
        "a command",
        |o| container(o, PRUNE)["command"] = json!(["altlas-backup", "restore", "--overwrite", "--yes"]),
        "it runs [\"altlas-backup\", \"restore\"",
    ),
    (
        "arguments",
        |o| container(o, VERIFY)["args"] = json!(["--level", "presence"]),
        "it runs [\"altlas-backup\", \"verify\"",
    ),
    (
        "a selector",
        |o| o.get_mut("Deployment", OBSERVER)["spec"]["selector"]["matchLabels"] = json!({"app": "x"}),
        "its selector is not of its pods",
    ),
    ("the time zone", |o| remove(cron(o, BACKUP), "timeZone"), "its time zone"),
    ("two at once", |o| cron(o, BACKUP)["concurrencyPolicy"] = "Allow".into(), "two may run at once"),
    ("a missed run", |o| remove(cron(o, VERIFY), "startingDeadlineSeconds"), "when a missed run is given up"),
    ("a job that is switched off", |o| cron(o, VERIFY)["suspend"] = true.into(), "it is suspended"),
    ("the history", |o| cron(o, VERIFY)["failedJobsHistoryLimit"] = 0.into(), "how many jobs are kept"),
    (
        "a second try",
        |o| cron(o, VERIFY)["jobTemplate"]["spec"]["backoffLimit"] = 3.into(),
        "a failed run is tried again",
    ),
    ("a restart", |o| pod(o, BACKUP)["restartPolicy"] = "OnFailure".into(), "a failed run is tried again"),
    (
        "a partial backup that looks well",
        |o| {
            cron(o, BACKUP)["jobTemplate"]["spec"]["podFailurePolicy"] =
                json!({"rules": [{"action": "Ignore", "onExitCodes": {"operator": "In", "values": [5]}}]})
        },
        "a policy may hide an exit code",
    ),
    (
        "no deadline",
        |o| remove(&mut cron(o, PRUNE)["jobTemplate"]["spec"], "activeDeadlineSeconds"),
        "it may run for ever",
    ),
    ("two pods", |o| cron(o, PRUNE)["jobTemplate"]["spec"]["parallelism"] = 2.into(), "it runs more than one pod"),
    (
        "a log that goes",
        |o| cron(o, PRUNE)["jobTemplate"]["spec"]["ttlSecondsAfterFinished"] = 60.into(),
        "a failed run's log is removed",
    ),
    ("two observers", |o| o.get_mut("Deployment", OBSERVER)["spec"]["replicas"] = 2.into(), "two may run at once"),
    ("a key of the configuration", |o| configure(o, "memory_mib", "memory_mb"), "unknown key"),
    (
        "when it is expected",
        |o| configure(o, "0 1 * * *", "0 2 * * *"),
        "the backup runs at \"0 1 * * *\" and is expected at 0 2 * * *",
    ),
    (
        "where it is expected",
        |o| {
            configure(
                o,
                "cron = \"0 1 * * *\"\ntimezone = \"Europe/Istanbul\"",
                "cron = \"0 1 * * *\"\ntimezone = \"UTC\"",
            )
        },
        "the configuration counts in",
    ),
    (
        "the night's order",
        |o| cron(o, VERIFY)["schedule"] = "30 1 * * *".into(),
        "starts before the one before it must have ended",
    ),
    ("a schedule", |o| cron(o, PRUNE)["schedule"] = "0 8 * * 0".into(), "is not daily"),
    ("time-outs", |o| configure(o, "timeout = \"70m\"", "timeout = \"90m\""), "before its time-outs of 16200 s"),
    ("who may ask", |o| configure(o, "[::]:9187", "127.0.0.1:9187"), "the observer listens on 127.0.0.1:9187 only"),
    ("a probe's port", |o| configure(o, "[::]:9187", "[::]:9188"), "livenessProbe asks"),
    (
        "a probe's path",
        |o| container(o, OBSERVER)["readinessProbe"]["httpGet"]["path"] = "/healthz".into(),
        "readinessProbe asks",
    ),
    (
        "the Service's port",
        |o| o.get_mut("Service", OBSERVER)["spec"]["ports"][0]["targetPort"] = "http".into(),
        "the Service sends to port \"http\"",
    ),
    (
        "the Service's pods",
        |o| o.get_mut("Service", OBSERVER)["spec"]["selector"] = json!({"app": "x"}),
        "the Service selects other pods",
    ),
    ("an annotation", |o| configure(o, "[::]:9187", "[::]:9189"), "the annotation for Prometheus names port"),
    (
        "a file of a secret",
        |o| configure(o, "/run/secrets/redis/password", "/run/secrets/redis/pass"),
        "/run/secrets/redis/pass is not mounted",
    ),
    (
        "a secret for nothing",
        |o| configure(o, "password_file = \"/run/secrets/nats/password\"\n", ""),
        "/run/secrets/nats/password is mounted for nothing",
    ),
    (
        "a variable",
        |o| container(o, BACKUP)["env"][1]["name"] = "ALTLAS_BACKUP_IDENTIY_FILE".into(),
        "ALTLAS_BACKUP_IDENTIY_FILE is no variable of ours",
    ),
    (
        "a variable's file",
        |o| container(o, VERIFY)["env"][1]["value"] = "/run/secrets/identity".into(),
        "/run/secrets/identity is not mounted",
    ),
    (
        "the configuration's place",
        |o| container(o, VERIFY)["env"][0]["value"] = "/etc/altlas-backup.toml".into(),
        "the configuration is not where it is looked for",
    ),
    (
        "scratch in memory",
        |o| pod(o, VERIFY)["volumes"][3]["emptyDir"]["medium"] = "Memory".into(),
        "volume \"scratch\" is in memory, and its table says nothing of /scratch",
    ),
    (
        "the scratch folder",
        |o| configure(o, "folder = \"/scratch\"", "folder = \"/var/scratch\""),
        "/var/scratch is no folder on disk of its own",
    ),
    (
        "the memory limit",
        |o| container(o, VERIFY)["resources"]["limits"]["memory"] = "1Gi".into(),
        "its limit of memory is \"1Gi\", and its table says 1792 MiB",
    ),
    (
        "the memory that is asked for",
        |o| container(o, PRUNE)["resources"]["requests"]["memory"] = "1Gi".into(),
        "it asks for more memory than it may have",
    ),
    (
        "the memory of data under way",
        |o| configure(o, "memory_mib = 128", "memory_mib = 256"),
        "limits.memory_mib needs 512 MiB",
    ),
    (
        "the disk",
        |o| pod(o, VERIFY)["volumes"][3]["emptyDir"]["sizeLimit"] = "40Gi".into(),
        "its limit of ephemeral storage is \"21Gi\"",
    ),
];

/// The same for the schemas.
const AGAINST_THE_SCHEMAS: &[Mutation] = &[
    (
        "a field's name",
        |o| {
            let spec = cron(o, BACKUP);
            remove(spec, "concurrencyPolicy");
            spec["concurencyPolicy"] = "Forbid".into();
        },
        "concurencyPolicy",
    ),
    ("a field's place", |o| pod(o, BACKUP)["readOnlyRootFilesystem"] = true.into(), "readOnlyRootFilesystem"),
    (
        "a field's type",
        |o| pod(o, BACKUP)["terminationGracePeriodSeconds"] = "60".into(),
        "terminationGracePeriodSeconds",
    ),
    ("a field that must be there", |o| remove(cron(o, PRUNE), "schedule"), "'schedule' is a required property"),
    (
        "a kind",
        |o| o.get_mut("Service", OBSERVER)["kind"] = "Serviice".into(),
        "Couldn't find schema for kind Serviice",
    ),
    ("a version", |o| o.get_mut("CronJob", BACKUP)["apiVersion"] = "batch/v1beta1".into(), "batch/v1beta1"),
];

/// The same for the flows.
const OF_FLOWS: &[Mutation] = &[
    (
        "no policy",
        |o| o.0.retain(|object| object["kind"] != "NetworkPolicy"),
        "verify -> postgres-db 5432/TCP is possible",
    ),
    (
        "no denial of what comes",
        |o| drop_object(o, "NetworkPolicy", "altlas-backup-deny"),
        "prometheus -> backup 9187/TCP is possible",
    ),
    ("no names", |o| drop_object(o, "NetworkPolicy", "altlas-backup-dns"), "backup -> kube-dns 53/UDP is not possible"),
    (
        "names over TCP",
        |o| {
            policy(o, "altlas-backup-dns")["egress"][0]["ports"].as_array_mut().unwrap().pop();
        },
        "verify -> kube-dns 53/TCP is not possible",
    ),
    (
        "names from anybody",
        |o| policy(o, "altlas-backup-dns")["egress"][0]["to"][0]["namespaceSelector"] = json!({}),
        "backup -> false kube-dns 53/UDP is possible",
    ),
    (
        "any port of kube-dns",
        |o| remove(&mut policy(o, "altlas-backup-dns")["egress"][0], "ports"),
        "backup -> kube-dns 443/TCP is possible",
    ),
    (
        "a store for all",
        |o| {
            policy(o, "altlas-backup-sources")["podSelector"] =
                json!({"matchLabels": {"app.kubernetes.io/name": "altlas-backup"}})
        },
        "verify -> redis 6379/TCP is possible",
    ),
    (
        "a store's label",
        |o| {
            policy(o, "altlas-backup-sources")["egress"][0]["to"][0]["podSelector"] =
                json!({"matchLabels": {"app": "postgres"}})
        },
        "backup -> postgres-db 5432/TCP is not possible",
    ),
    (
        "a store's port",
        |o| policy(o, "altlas-backup-sources")["egress"][2]["ports"][0]["port"] = 8222.into(),
        "backup -> nats 8222/TCP is possible",
    ),
    (
        "stores of all namespaces",
        |o| policy(o, "altlas-backup-sources")["egress"][1]["to"][0]["namespaceSelector"] = json!({}),
        "backup -> redis of another namespace 6379/TCP is possible",
    ),
    (
        "the whole world",
        |o| policy(o, "altlas-backup-repository")["egress"][0] = json!({"ports": [{"port": 9000, "protocol": "TCP"}]}),
        "observer -> an address outside 9000/TCP is possible",
    ),
    (
        "no repository",
        |o| drop_object(o, "NetworkPolicy", "altlas-backup-repository"),
        "prune -> minio 9000/TCP is not possible",
    ),
    (
        "no alerts",
        |o| policy(o, "altlas-backup-alerts")["egress"] = json!([]),
        "observer -> alertmanager 9093/TCP is not possible",
    ),
    (
        "metrics for all",
        |o| policy(o, "altlas-backup-metrics")["ingress"][0]["from"][0]["podSelector"] = json!({}),
        "grafana -> observer 9187/TCP is possible",
    ),
    (
        "metrics of all",
        |o| {
            policy(o, "altlas-backup-metrics")["podSelector"] =
                json!({"matchLabels": {"app.kubernetes.io/name": "altlas-backup"}})
        },
        "prometheus -> verify 9187/TCP is possible",
    ),
];

#[track_caller]
fn assert_told(mutations: &[Mutation], findings: fn(&Objects) -> Vec<String>) {
    for (name, mutate, said) in mutations {
        let mut objects = Objects::base().clone();
        mutate(&mut objects);
        let found = findings(&objects);
        assert!(found.iter().any(|finding| finding.contains(said)), "{name}: `{said}` is not in {found:#?}");
    }
}

#[test]
fn every_rule_finds_what_breaks_it() {
    assert_told(MUTATIONS, rules::findings);
    // A table that was not kept up with.
    let mut tables = rules::tables();
    let verify = tables.get_mut("verify").unwrap();
    verify.retain(|(what, _)| !what.starts_with("Redis: "));
    let found = rules::memory(Objects::base(), &tables);
    assert!(found.iter().any(|finding| finding.contains("has no row `Redis: `")), "{found:?}");
    assert!(found.iter().any(|finding| finding.contains("does not add up to 1792 MiB")), "{found:?}");
}

#[test]
fn the_schemas_find_what_breaks_them() {
    assert_told(AGAINST_THE_SCHEMAS, Objects::schema_problems);
}

#[test]
fn the_matrix_finds_what_breaks_it() {
    assert_told(OF_FLOWS, flows::findings);
}
