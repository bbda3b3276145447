//! The configuration in the manifests: it is one of ours, and says what the objects say.

use std::{collections::BTreeSet, path::Path};

use altlas_backup::config::{Config, ConfigError, ScratchMode};
use serde_json::Value;

use super::objects::{Objects, Template, list, text};
use crate::support::mode::Identities;

/// What stands in the manifest for keys that it cannot know: the only things that whoever applies it must change.
pub(super) const PLACEHOLDERS: [&str; 3] = ["age1…yours", "age1…an-escrow's", "age1…the-catalogue's"];

/// The configuration's text with keys in place of [`PLACEHOLDERS`].
#[track_caller]
pub(super) fn with_keys(text: &str, keys: [&str; 3]) -> String {
    PLACEHOLDERS.iter().zip(keys).fold(text.to_owned(), |text, (placeholder, key)| {
        assert_eq!(text.matches(placeholder).count(), 1, "{placeholder}");
        text.replace(placeholder, key)
    })
}

/// The configuration, with keys of somebody.
pub(super) fn parsed(objects: &Objects) -> Result<Config, ConfigError> {
    let (name, text) = objects.configuration();
    let [data, escrow, catalog] = [(); 3].map(|()| Identities::generate().recipient());
    let text = with_keys(text, [&data, &escrow, &catalog]);
    Config::from_text(&text, &Path::new("/etc/altlas-backup").join(name), None)
}

/// What of the configuration and of the objects do not fit together.
pub(super) fn findings(objects: &Objects) -> Vec<String> {
    let config = match parsed(objects) {
        Ok(config) => config,
        Err(error) => return vec![format!("the configuration: {error}")],
    };
    let mut found = schedules(objects, &config);
    found.extend(ports(objects, &config));
    for template in objects.templates() {
        if let Some(component) = template.component() {
            found.extend(
                files(objects, template, component).into_iter().map(|what| format!("{}: {what}", template.name())),
            );
        }
    }
    found
}

/// When a pattern of the form `MINUTE HOUR * * *` says, in seconds of the day.
fn daily(cron: &str) -> Option<u64> {
    let fields: Vec<&str> = cron.split(' ').collect();
    let [minute, hour, "*", "*", "*"] = fields[..] else { return None };
    Some(hour.parse::<u64>().ok()? * 3600 + minute.parse::<u64>().ok()? * 60)
}

fn schedules(objects: &Objects, config: &Config) -> Vec<String> {
    let mut found = Vec::new();
    let nightly = &config.schedules[0];
    let backup = objects.get("CronJob", "altlas-backup");
    if config.schedules.len() != 1 || backup["spec"]["schedule"] != nightly.cron.as_str() {
        found.push(format!(
            "the backup runs at {} and is expected at {}",
            backup["spec"]["schedule"],
            nightly.cron.as_str()
        ));
    }
    let retention = config.retention.as_ref().map(|retention| retention.timezone.iana_name());
    for zone in [nightly.timezone.iana_name(), retention.flatten()] {
        if zone != backup["spec"]["timeZone"].as_str() {
            found.push(format!(
                "the backup runs in {} and the configuration counts in {zone:?}",
                backup["spec"]["timeZone"]
            ));
        }
    }
    // Each when the one before must have ended.
    let mut ended = 0;
    for name in ["altlas-backup", "altlas-backup-verify", "altlas-backup-prune"] {
        let spec = &objects.get("CronJob", name)["spec"];
        let Some(start) = daily(text(&spec["schedule"])) else {
            found.push(format!("CronJob/{name} is not daily: {}", spec["schedule"]));
            continue;
        };
        if start < ended {
            found.push(format!("CronJob/{name} starts before the one before it must have ended"));
        }
        ended = start + spec["jobTemplate"]["spec"]["activeDeadlineSeconds"].as_u64().unwrap_or_default();
    }
    let verify = &objects.get("CronJob", "altlas-backup-verify")["spec"]["jobTemplate"]["spec"];
    let proofs = config.scratch.timeout.as_secs() * config.sources.len() as u64;
    if verify["activeDeadlineSeconds"].as_u64().unwrap_or_default() < proofs {
        found.push(format!(
            "the verification is ended after {}, before its time-outs of {proofs} s",
            verify["activeDeadlineSeconds"]
        ));
    }
    found
}

/// Where the observer listens, who is told of that, and that whoever asks is answered.
fn ports(objects: &Objects, config: &Config) -> Vec<String> {
    let listen = config.server.listen;
    let mut found = Vec::new();
    if !listen.ip().is_unspecified() {
        found.push(format!("the observer listens on {listen} only"));
    }
    let template = objects.template("observer");
    let container = template.container();
    let named = |port: &Value| match port {
        Value::String(name) => {
            list(&container["ports"]).find(|found| found["name"] == **name)?["containerPort"].as_u64()
        }
        number => number.as_u64(),
    };
    for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
        let get = &container[probe]["httpGet"];
        if get["path"] != path || named(&get["port"]) != Some(u64::from(listen.port())) {
            found.push(format!("the observer's {probe} asks {get}, and it listens on port {}", listen.port()));
        }
    }
    let service = objects.get("Service", "altlas-backup-observer");
    for port in list(&service["spec"]["ports"]) {
        if named(&port["targetPort"]) != Some(u64::from(listen.port())) {
            found.push(format!(
                "the Service sends to port {}, and the observer listens on {}",
                port["targetPort"],
                listen.port()
            ));
        }
    }
    let labels = template.metadata["labels"].as_object().unwrap();
    let selector = service["spec"]["selector"].as_object();
    if selector.is_none_or(|selector| {
        selector.is_empty() || !selector.iter().all(|(name, value)| labels.get(name) == Some(value))
    }) {
        found.push("the Service selects other pods than the observer's".to_owned());
    }
    let annotated = &template.metadata["annotations"]["prometheus.io/port"];
    if text(annotated) != listen.port().to_string() {
        found.push(format!("the annotation for Prometheus names port {annotated}"));
    }
    found
}

/// Every secret file that a pod is told of is mounted, and no other is.
fn files(objects: &Objects, template: Template<'_>, component: &str) -> Vec<String> {
    let container = template.container();
    let (name, configuration) = objects.configuration();
    let table: toml::Table = configuration.parse().unwrap();
    let mut told: BTreeSet<String> = BTreeSet::new();
    let of_config = |told: &mut BTreeSet<String>, section: &str| {
        if let Some(section) =
            section.split('.').try_fold(&toml::Value::Table(table.clone()), |table, name| table.get(name))
        {
            named_files(section, told);
        }
    };
    of_config(&mut told, "repository");
    of_config(&mut told, "alerts");
    // Whoever does not talk to the sources has none of their passwords.
    if component == "backup" {
        of_config(&mut told, "source");
    }
    let mut found = Vec::new();
    let mut config_file = None;
    for variable in list(&container["env"]) {
        match (text(&variable["name"]), text(&variable["value"])) {
            ("ALTLAS_BACKUP_CONFIG", path) => config_file = Some(path.to_owned()),
            ("ALTLAS_BACKUP_CATALOG_IDENTITY_FILE" | "ALTLAS_BACKUP_IDENTITY_FILE", path) => {
                told.insert(path.to_owned());
            }
            (name, _) => found.push(format!("{name} is no variable of ours")),
        }
    }
    let mut mounted = BTreeSet::new();
    let mut configs = BTreeSet::new();
    for (path, volume) in mounts(template) {
        if volume.get("secret").is_some() {
            mounted.extend(list(&volume["secret"]["items"]).map(|item| format!("{path}/{}", text(&item["path"]))));
        }
        if volume.get("configMap").is_some() {
            configs.insert(format!("{path}/{name}"));
        }
    }
    found.extend(told.difference(&mounted).map(|file| format!("{file} is not mounted")));
    found.extend(mounted.difference(&told).map(|file| format!("{file} is mounted for nothing")));
    if config_file.is_none_or(|file| !configs.contains(&file)) {
        found.push("the configuration is not where it is looked for".to_owned());
    }
    let identity = |kind: &str| told.iter().any(|file| file.starts_with(&format!("/run/secrets/{kind}/")));
    if (identity("identity"), identity("catalog")) != (component == "verify", component != "verify") {
        found.push("it holds an identity that is not for it".to_owned());
    }
    if component == "verify" {
        let config = parsed(objects).unwrap();
        let folder = config.scratch.folder.unwrap_or_default();
        let on_disk = |volume: &Value| volume["emptyDir"].is_object() && volume["emptyDir"].get("medium").is_none();
        if !matches!(config.scratch.mode, ScratchMode::Local)
            || !mounts(template).any(|(path, volume)| Path::new(path) == folder && on_disk(volume))
        {
            found.push(format!("{} is no folder on disk of its own", folder.display()));
        }
    }
    found
}

/// Every value of a key that ends in `_file`, anywhere below.
fn named_files(value: &toml::Value, found: &mut BTreeSet<String>) {
    match value {
        toml::Value::Table(table) => {
            for (name, value) in table {
                match value.as_str() {
                    Some(path) if name.ends_with("_file") => {
                        found.insert(path.to_owned());
                    }
                    _ => named_files(value, found),
                }
            }
        }
        toml::Value::Array(items) => items.iter().for_each(|item| named_files(item, found)),
        _ => {}
    }
}

/// Where the container has what volume.
pub(super) fn mounts<'a>(template: Template<'a>) -> impl Iterator<Item = (&'a str, &'a Value)> {
    list(&template.container()["volumeMounts"]).filter_map(move |mount| {
        let volume = template.volumes().find(|volume| volume["name"] == mount["name"])?;
        Some((text(&mount["mountPath"]), volume))
    })
}

#[test]
fn the_configuration_is_ours_once_it_has_keys() {
    let objects = Objects::base();
    let config = parsed(objects).unwrap();
    let sources: Vec<_> = config.sources.iter().map(|source| (source.name.as_str(), source.settings.kind())).collect();
    assert_eq!(sources, [("database", "postgres"), ("cache", "redis"), ("messages", "nats")]);
    assert!(config.alerts.alertmanager.is_some() && config.retention.is_some());
    // As it stands there nothing runs: nobody has the identity of a placeholder.
    let (_, text) = objects.configuration();
    let error = Config::from_text(text, Path::new("altlas-backup.toml"), None).unwrap_err().to_string();
    for key in ["`repository.encryption.recipients`: [0]", "`repository.encryption.catalog_recipients`: [0]"] {
        assert!(error.contains(key), "{error}");
    }
}
