//! What every manifest must keep to, whatever it is for: references lead somewhere, pods are restricted, jobs end and fail as they
//! should, memory adds up. A rule gives what breaks it, in words that name the object; [`super::mutations`] shows that each can.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value;

use super::{
    objects::{COMPONENTS, Objects, Template, list, name_of, pod_place, text, under},
    settings,
};

/// Secrets that whoever applies the manifests makes, their keys, and which of our pods mount them.
pub(super) const SECRETS: [(&str, &[&str], &[&str]); 6] = [
    ("altlas-backup-s3", &["access-key-id", "secret-access-key"], &COMPONENTS),
    ("altlas-backup-postgres", &["password"], &["backup"]),
    ("altlas-backup-redis", &["password"], &["backup"]),
    ("altlas-backup-nats", &["password"], &["backup"]),
    ("altlas-backup-catalog", &["identity"], &["backup", "prune", "observer"]),
    ("altlas-backup-identity", &["identity"], &["verify"]),
];

/// All that runs: nothing that restores, and nothing else that a later change might slip in.
const COMMANDS: [(&str, &[&str]); 4] = [
    ("backup", &["altlas-backup", "backup"]),
    ("verify", &["altlas-backup", "verify", "latest", "--level", "restore"]),
    ("prune", &["altlas-backup", "prune"]),
    ("observer", &["altlas-backup", "serve", "--observe-only"]),
];

/// The user of the image.
pub(super) const USER: u64 = 10001;

/// Everything that is wrong.
pub(super) fn findings(objects: &Objects) -> Vec<String> {
    let rules: [fn(&Objects) -> Vec<String>; 8] =
        [kinds, words, references, restricted, commands, cron_jobs, the_observer, settings::findings];
    let mut found: Vec<String> = rules.iter().flat_map(|rule| rule(objects)).collect();
    found.extend(memory(objects, &tables()));
    found
}

/// Nothing that runs at once, and no secret's value.
fn kinds(objects: &Objects) -> Vec<String> {
    const APPLIED: [&str; 6] = ["ServiceAccount", "ConfigMap", "CronJob", "Deployment", "Service", "NetworkPolicy"];
    let others = objects.0.iter().filter(|object| !APPLIED.contains(&text(&object["kind"])));
    let mut found: Vec<String> = others.map(|object| format!("{} is applied", name_of(object))).collect();
    let namespace = |object: &Value| object["metadata"]["namespace"].as_str() == Some("alt-las");
    found.extend(
        objects.0.iter().filter(|object| !namespace(object)).map(|object| format!("{} is elsewhere", name_of(object))),
    );
    found
}

/// Words that the schemas take for any text.
fn words(objects: &Objects) -> Vec<String> {
    const WORDS: [(&str, &[&str]); 9] = [
        ("policyTypes", &["Ingress", "Egress"]),
        ("concurrencyPolicy", &["Allow", "Forbid", "Replace"]),
        ("restartPolicy", &["Always", "OnFailure", "Never"]),
        ("protocol", &["TCP", "UDP", "SCTP"]),
        ("imagePullPolicy", &["Always", "IfNotPresent", "Never"]),
        ("medium", &["", "Memory"]),
        ("fsGroupChangePolicy", &["Always", "OnRootMismatch"]),
        ("seccompProfile", &["RuntimeDefault", "Localhost", "Unconfined"]),
        ("operator", &["In", "NotIn", "Exists", "DoesNotExist"]),
    ];
    let mut found = Vec::new();
    for object in &objects.0 {
        for (key, allowed) in WORDS {
            let mut values = Vec::new();
            under(object, key, &mut values);
            let words = values.into_iter().flat_map(|value| match value {
                Value::Array(items) => items.iter().map(text).collect(),
                Value::Object(_) => vec![text(&value["type"])],
                value => vec![text(value)],
            });
            found.extend(
                words
                    .filter(|word| !allowed.contains(word))
                    .map(|word| format!("{}: `{word}` is no {key}", name_of(object))),
            );
        }
    }
    found
}

/// Whatever a pod names is there, or is one of [`SECRETS`].
fn references(objects: &Objects) -> Vec<String> {
    let mut found = Vec::new();
    let is_there = |kind: &str, name: &Value| objects.of_kind(kind).any(|object| object["metadata"]["name"] == *name);
    for template in objects.templates() {
        let mut wrong = |what: String| found.push(format!("{}: {what}", template.name()));
        if !is_there("ServiceAccount", &template.spec["serviceAccountName"]) {
            wrong(format!("there is no ServiceAccount {}", template.spec["serviceAccountName"]));
        }
        let mut named: Vec<(&str, &Value, Vec<&Value>)> = Vec::new();
        for volume in template.volumes() {
            let keys = |source: &'static str| list(&volume[source]["items"]).map(|item| &item["key"]).collect();
            if volume["configMap"].is_object() {
                named.push(("ConfigMap", &volume["configMap"]["name"], keys("configMap")));
            }
            if volume["secret"].is_object() {
                named.push(("Secret", &volume["secret"]["secretName"], keys("secret")));
                // What is mounted without a list is all of it.
                if volume["secret"]["items"].is_null() {
                    wrong(format!("volume {} mounts every key of its Secret", volume["name"]));
                }
            }
            if volume["persistentVolumeClaim"].is_object() {
                named.push(("PersistentVolumeClaim", &volume["persistentVolumeClaim"]["claimName"], Vec::new()));
            }
        }
        for (field, kind) in [
            ("configMapKeyRef", "ConfigMap"),
            ("secretKeyRef", "Secret"),
            ("configMapRef", "ConfigMap"),
            ("secretRef", "Secret"),
        ] {
            let mut references = Vec::new();
            under(template.spec, field, &mut references);
            named.extend(references.into_iter().map(|from| (kind, &from["name"], vec![&from["key"]])));
        }
        for (kind, name, keys) in named {
            let secret = SECRETS.iter().find(|(secret, ..)| kind == "Secret" && *name == **secret);
            let Some((_, known, holders)) = secret else {
                if kind == "Secret" || !is_there(kind, name) {
                    wrong(format!("there is no {kind} {name}"));
                }
                continue;
            };
            let component = template.component().unwrap_or_default();
            if !holders.contains(&component) {
                wrong(format!("Secret {name} is not for it"));
            }
            for key in keys.into_iter().filter(|key| !known.contains(&text(key))) {
                wrong(format!("Secret {name} has no key {key}"));
            }
        }
        for container in template.containers() {
            for mount in list(&container["volumeMounts"]) {
                if !template.volumes().any(|volume| volume["name"] == mount["name"]) {
                    wrong(format!("there is no volume {}", mount["name"]));
                }
            }
        }
        for volume in template.volumes() {
            let mut mounts = template.containers().flat_map(|container| list(&container["volumeMounts"]));
            if !mounts.any(|mount| mount["name"] == volume["name"]) {
                wrong(format!("volume {} is mounted nowhere", volume["name"]));
            }
        }
    }
    found
}

/// The Pod Security Standard "restricted" (Kubernetes' documentation, "Pod Security Standards": everything of "baseline" with it), and
/// what we ask for beside it.
fn restricted(objects: &Objects) -> Vec<String> {
    objects
        .templates()
        .into_iter()
        .flat_map(|pod| violations(pod).into_iter().map(move |what| format!("{}: {what}", pod.name())))
        .collect()
}

fn violations(pod: Template<'_>) -> Vec<String> {
    const VOLUMES: [&str; 8] =
        ["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"];
    let mut found = Vec::new();
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        if pod.spec[field] == true {
            found.push(format!("{field} is set"));
        }
    }
    for volume in pod.volumes() {
        let kinds = volume.as_object().unwrap().keys().filter(|key| *key != "name");
        found.extend(
            kinds.filter(|kind| !VOLUMES.contains(&kind.as_str())).map(|kind| format!("a volume of kind {kind}")),
        );
        let mode = &volume["secret"]["defaultMode"];
        if volume["secret"].is_object() && *mode != 0o400 {
            found.push(format!("mode {mode} of a Secret's files"));
        }
        if volume["emptyDir"].is_object() && volume["emptyDir"]["sizeLimit"].is_null() {
            found.push(format!("volume {} may grow without end", volume["name"]));
        }
    }
    let of_pod = &pod.spec["securityContext"];
    if list(&of_pod["sysctls"]).count() > 0 {
        found.push("sysctls are set".to_owned());
    }
    for container in pod.containers() {
        let name = text(&container["name"]);
        let own = &container["securityContext"];
        // A container's own word goes before the pod's.
        let setting = |field: &str| if own[field].is_null() { &of_pod[field] } else { &own[field] };
        let mut wrong = |what: &str| found.push(format!("container {name}: {what}"));
        if own["privileged"] == true {
            wrong("privileged");
        }
        if own["allowPrivilegeEscalation"] != false {
            wrong("allowPrivilegeEscalation is not false");
        }
        if *setting("runAsNonRoot") != true {
            wrong("runAsNonRoot is not true");
        }
        for field in ["runAsUser", "runAsGroup"] {
            if *setting(field) != USER {
                wrong(&format!("{field} is not {USER}"));
            }
        }
        if setting("seccompProfile")["type"] != "RuntimeDefault" {
            wrong("seccompProfile is not RuntimeDefault");
        }
        if !list(&own["capabilities"]["drop"]).any(|dropped| dropped == "ALL") {
            wrong("not all capabilities are dropped");
        }
        if list(&own["capabilities"]["add"]).count() > 0 {
            wrong("capabilities are added");
        }
        if own["procMount"].is_string() || !setting("seLinuxOptions").is_null() || !setting("appArmorProfile").is_null()
        {
            wrong("procMount, seLinuxOptions or appArmorProfile is set");
        }
        if list(&container["ports"]).any(|port| !port["hostPort"].is_null()) {
            wrong("a port of the host's");
        }
        if own["readOnlyRootFilesystem"] != true {
            wrong("its root can be written to");
        }
        if container["resources"]["limits"]["memory"].is_null()
            || container["resources"]["requests"]["memory"].is_null()
        {
            wrong("no request or limit of memory");
        }
        let image = text(&container["image"]);
        let expected = format!("altlas-backup:{}", env!("CARGO_PKG_VERSION"));
        if image != expected {
            wrong(&format!("image {image}, not {expected}"));
        }
    }
    if of_pod["fsGroup"] != USER {
        found.push("its group cannot read what only the owner of a mounted file may".to_owned());
    }
    if pod.spec["automountServiceAccountToken"] != false {
        found.push("it gets a token".to_owned());
    }
    if pod.spec["enableServiceLinks"] != false {
        found.push("it gets other services' variables".to_owned());
    }
    found
}

/// What runs is what is written down here, in pods of ours.
fn commands(objects: &Objects) -> Vec<String> {
    let mut found = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for template in objects.templates() {
        let component = template.component().unwrap_or_default();
        seen.push(component);
        let expected = COMMANDS.iter().find(|(name, _)| *name == component).map(|(_, command)| *command);
        for container in template.containers() {
            let command: Vec<&str> = list(&container["command"]).chain(list(&container["args"])).map(text).collect();
            if expected != Some(&command[..]) {
                found.push(format!("{}: it runs {command:?}", template.name()));
            }
        }
        // Whoever selects pods by their labels finds these.
        if template.owner["kind"] == "Deployment" {
            let labels = template.metadata["labels"].as_object().unwrap();
            let selected = template.owner["spec"]["selector"]["matchLabels"].as_object().unwrap();
            if selected.is_empty() || !selected.iter().all(|(name, value)| labels.get(name) == Some(value)) {
                found.push(format!("{}: its selector is not of its pods", template.name()));
            }
        }
    }
    seen.sort_unstable();
    let mut all = COMPONENTS;
    all.sort_unstable();
    if seen != all {
        found.push(format!("the pods are of {seen:?}"));
    }
    found
}

fn cron_jobs(objects: &Objects) -> Vec<String> {
    let mut found = Vec::new();
    for cron in objects.of_kind("CronJob") {
        let mut wrong = |what: &str| found.push(format!("{}: {what}", name_of(cron)));
        let spec = &cron["spec"];
        let job = &spec["jobTemplate"]["spec"];
        let pod = cron.pointer(pod_place(cron).unwrap()).map(|template| &template["spec"]).unwrap();
        if spec["timeZone"] != "Europe/Istanbul" {
            wrong("its time zone");
        }
        if spec["concurrencyPolicy"] != "Forbid" {
            wrong("two may run at once");
        }
        if spec["startingDeadlineSeconds"] != 10800 {
            wrong("when a missed run is given up");
        }
        if spec["suspend"] == true {
            wrong("it is suspended");
        }
        if spec["successfulJobsHistoryLimit"] != 3 || spec["failedJobsHistoryLimit"] != 3 {
            wrong("how many jobs are kept");
        }
        if job["backoffLimit"] != 0 || pod["restartPolicy"] != "Never" {
            wrong("a failed run is tried again");
        }
        // An exit code that is not 0 is a failed Job, unless a policy says otherwise.
        if !job["podFailurePolicy"].is_null() || !job["successPolicy"].is_null() {
            wrong("a policy may hide an exit code");
        }
        if !job["activeDeadlineSeconds"].is_u64() {
            wrong("it may run for ever");
        }
        if [&job["parallelism"], &job["completions"]].iter().any(|number| !number.is_null()) {
            wrong("it runs more than one pod");
        }
        if !job["ttlSecondsAfterFinished"].is_null() {
            wrong("a failed run's log is removed");
        }
    }
    found
}

fn the_observer(objects: &Objects) -> Vec<String> {
    let spec = &objects.get("Deployment", "altlas-backup-observer")["spec"];
    let one = spec["replicas"] == 1 && spec["strategy"]["type"] == "Recreate";
    if one { Vec::new() } else { vec!["Deployment/altlas-backup-observer: two may run at once".to_owned()] }
}

/// A manifest's table of memory: what, and how much at most, in MiB. The last row is the sum.
type Table = Vec<(String, u64)>;

/// The tables in the manifests' comments, by component.
pub(super) fn tables() -> BTreeMap<&'static str, Table> {
    let read = |component: &&'static str| {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("k8s/base/{component}.yaml"));
        let text = fs::read_to_string(file).unwrap();
        let rows = text.lines().filter_map(|line| line.strip_prefix("#   | ")?.strip_suffix(" |"));
        let rows = rows.filter_map(|row| {
            let (what, most) = row.rsplit_once('|')?;
            Some((what.trim().to_owned(), most.trim().strip_suffix("Mi")?.parse().unwrap()))
        });
        (*component, rows.collect())
    };
    COMPONENTS.iter().map(read).collect()
}

/// The limit is the sum of what its table says, and nothing that takes memory is missing there.
pub(super) fn memory(objects: &Objects, tables: &BTreeMap<&str, Table>) -> Vec<String> {
    let Ok(config) = settings::parsed(objects) else { return Vec::new() };
    let own = 2 * u64::from(config.limits.memory_mib);
    let mut found = Vec::new();
    for component in COMPONENTS {
        let template = objects.template(component);
        let mut wrong = |what: String| found.push(format!("{}: {what}", template.name()));
        let Some(((_, sum), rows)) = tables[component].split_last() else {
            wrong("there is no table of its memory".into());
            continue;
        };
        if rows.iter().map(|(_, most)| most).sum::<u64>() != *sum {
            wrong(format!("its table of memory does not add up to {sum} MiB"));
        }
        let resources = &template.container()["resources"];
        let limit = &resources["limits"]["memory"];
        if mebibytes(limit) != Some(*sum) {
            wrong(format!("its limit of memory is {limit}, and its table says {sum} MiB"));
        }
        if mebibytes(&resources["requests"]["memory"]) > Some(*sum) {
            wrong("it asks for more memory than it may have".into());
        }
        let row = |begin: &str| rows.iter().find(|(what, _)| what.starts_with(begin)).map(|(_, most)| *most);
        if row("altlas-backup: ").is_none_or(|most| most < own) {
            wrong(format!("limits.memory_mib needs {own} MiB"));
        }
        if component == "verify" {
            let kinds = config.sources.iter().map(|source| source.settings.kind());
            let names = kinds.map(|kind| match kind {
                "postgres" => "PostgreSQL: ",
                "redis" => "Redis: ",
                _ => "NATS: ",
            });
            for name in names.filter(|name| row(name).is_none()) {
                wrong(format!("its table of memory has no row `{name}`"));
            }
        }
        let on_disk = |volume: &&Value| volume["emptyDir"]["medium"] != "Memory";
        let (disks, memories): (Vec<_>, Vec<_>) =
            template.volumes().filter(|volume| volume["emptyDir"].is_object()).partition(on_disk);
        for volume in memories {
            let path = settings::mounts(template)
                .find(|(_, mounted)| mounted["name"] == volume["name"])
                .map_or("", |(path, _)| path);
            if row(path).is_none_or(|most| Some(most) < mebibytes(&volume["emptyDir"]["sizeLimit"])) {
                wrong(format!("volume {} is in memory, and its table says nothing of {path}", volume["name"]));
            }
        }
        let disk: u64 = disks.iter().filter_map(|volume| mebibytes(&volume["emptyDir"]["sizeLimit"])).sum();
        let limit = &resources["limits"]["ephemeral-storage"];
        if !limit.is_null() && mebibytes(limit) < Some(disk) {
            wrong(format!("its limit of ephemeral storage is {limit}, and its volumes may hold {disk} MiB"));
        }
    }
    found
}

fn mebibytes(quantity: &Value) -> Option<u64> {
    let quantity = quantity.as_str()?;
    let (number, factor) = quantity
        .strip_suffix("Mi")
        .map(|number| (number, 1))
        .or(quantity.strip_suffix("Gi").map(|number| (number, 1024)))?;
    Some(number.parse::<u64>().ok()? * factor)
}

#[test]
fn the_base_keeps_to_the_rules() {
    assert_eq!(findings(Objects::base()), [""; 0]);
    assert_eq!(findings(&Objects::guarded()), [""; 0]);
}

#[test]
fn the_secrets_are_told_of() {
    let told = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("k8s/base/kustomization.yaml")).unwrap();
    for (name, keys, holders) in SECRETS {
        let line =
            told.lines().find(|line| line.starts_with(&format!("#   {name} "))).unwrap_or_else(|| panic!("{name}"));
        let holders = if holders.len() == COMPONENTS.len() { "all pods".to_owned() } else { holders.join(", ") };
        assert!(line.ends_with(&format!("  {holders}")) && line.contains(&keys.join(", ")), "{line}");
    }
}
