//! Who reaches whom: the network policies, carried out on pods as they would be in the namespace of ALT_LAS.
//!
//! Rules are those of the API (NetworkPolicySpec): a pod that no policy selects for a direction may do all in it; one that some select
//! may do what any of them allows. A connection needs both sides.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::objects::{COMPONENTS, Objects, list, text};

/// Every flow that ours take part in, and no other: from whom, to whom, where.
const FLOWS: &str = "
    backup      postgres-db   5432/TCP
    backup      redis         6379/TCP
    backup      nats          4222/TCP
    backup      minio         9000/TCP
    backup      alertmanager  9093/TCP
    backup      kube-dns      53/UDP
    backup      kube-dns      53/TCP
    verify      minio         9000/TCP
    verify      alertmanager  9093/TCP
    verify      kube-dns      53/UDP
    verify      kube-dns      53/TCP
    prune       minio         9000/TCP
    prune       alertmanager  9093/TCP
    prune       kube-dns      53/UDP
    prune       kube-dns      53/TCP
    observer    minio         9000/TCP
    observer    alertmanager  9093/TCP
    observer    kube-dns      53/UDP
    observer    kube-dns      53/TCP
    prometheus  observer      9187/TCP
";

/// Ports that somebody listens on, or might.
const PORTS: [(u64, &str); 13] = [
    (53, "UDP"),
    (53, "TCP"),
    (80, "TCP"),
    (443, "TCP"),
    (4222, "TCP"),
    (5432, "TCP"),
    (5432, "UDP"),
    (6379, "TCP"),
    (8222, "TCP"),
    (9000, "TCP"),
    (9090, "TCP"),
    (9093, "TCP"),
    (9187, "TCP"),
];

type Labels = BTreeMap<String, String>;

/// Somebody who connects or is connected to.
#[derive(Clone, Debug)]
struct Party {
    name: String,
    /// Absent: an address outside of the cluster, or the API server's.
    pod: Option<(String, Labels)>,
}

impl Party {
    fn pod(name: &str, namespace: &str, labels: &[(&str, &str)]) -> Self {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { name: name.to_owned(), pod: Some((namespace.to_owned(), labels)) }
    }
}

/// Ours, those of ALT_LAS, and some that only look like them.
fn parties(objects: &Objects) -> Vec<Party> {
    let mut parties: Vec<Party> = COMPONENTS
        .iter()
        .map(|component| {
            let labels = objects.template(component).metadata["labels"].as_object().unwrap();
            let labels: Vec<(&str, &str)> = labels.iter().map(|(name, value)| (name.as_str(), text(value))).collect();
            Party::pod(component, "alt-las", &labels)
        })
        .collect();
    let apps = [
        "postgres-db",
        "redis",
        "nats",
        "minio",
        "alertmanager",
        "prometheus",
        "grafana",
        "api-gateway",
        "archive-service",
    ];
    parties.extend(apps.map(|app| Party::pod(app, "alt-las", &[("app", app)])));
    parties.push(Party::pod("kube-dns", "kube-system", &[("k8s-app", "kube-dns")]));
    parties.push(Party::pod("other of kube-system", "kube-system", &[("k8s-app", "metrics-server")]));
    for app in apps {
        parties.push(Party::pod(&format!("{app} of another namespace"), "other", &[("app", app)]));
    }
    parties.push(Party::pod("false kube-dns", "other", &[("k8s-app", "kube-dns")]));
    parties.push(Party { name: "an address outside".to_owned(), pod: None });
    parties
}

fn selects(selector: &Value, labels: &Labels) -> bool {
    let matches = |(name, value): (&String, &Value)| labels.get(name).map(String::as_str) == value.as_str();
    let plain = selector["matchLabels"].as_object().is_none_or(|wanted| wanted.iter().all(matches));
    plain
        && list(&selector["matchExpressions"]).all(|expression| {
            let value = labels.get(text(&expression["key"]));
            let listed = || value.is_some_and(|value| list(&expression["values"]).any(|one| one == value.as_str()));
            match text(&expression["operator"]) {
                "In" => listed(),
                "NotIn" => !listed(),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                other => panic!("operator {other}"),
            }
        })
}

/// Is `party` one of these peers of a policy in `namespace`?
fn is_peer(peer: &Value, party: &Party, namespace: &str) -> bool {
    assert!(peer["ipBlock"].is_null(), "blocks of addresses are not carried out here");
    let Some((home, labels)) = &party.pod else { return false };
    let there = match &peer["namespaceSelector"] {
        Value::Null => home == namespace,
        selector => selects(selector, &[("kubernetes.io/metadata.name".to_owned(), home.clone())].into()),
    };
    there && (peer["podSelector"].is_null() || selects(&peer["podSelector"], labels))
}

/// May `pod` talk to `other` in this direction?
fn may(policies: &[&Value], pod: &Party, other: &Party, direction: (&str, &str, &str), port: (u64, &str)) -> bool {
    let (kind, rules, peers) = direction;
    let Some((namespace, labels)) = &pod.pod else { return true };
    let mut selected = policies.iter().filter(|policy| {
        let types = &policy["spec"]["policyTypes"];
        let applies = match types {
            Value::Null => kind == "Ingress" || !policy["spec"]["egress"].is_null(),
            types => list(types).any(|one| one == kind),
        };
        applies && policy["metadata"]["namespace"] == **namespace && selects(&policy["spec"]["podSelector"], labels)
    });
    let mut selected = selected.by_ref().peekable();
    if selected.peek().is_none() {
        return true;
    }
    selected.any(|policy| {
        list(&policy["spec"][rules]).any(|rule| {
            let to_it = rule[peers].is_null() || list(&rule[peers]).any(|peer| is_peer(peer, other, namespace));
            let there = rule["ports"].is_null()
                || list(&rule["ports"]).any(|allowed| {
                    let last = allowed["endPort"].as_u64().or(allowed["port"].as_u64());
                    let protocol = allowed["protocol"].as_str().unwrap_or("TCP");
                    assert!(!allowed["port"].is_string(), "names of ports are not carried out here");
                    let number = allowed["port"].as_u64().is_none_or(|first| (first..=last.unwrap()).contains(&port.0));
                    number && protocol == port.1
                });
            to_it && there
        })
    })
}

/// Every flow that is possible and that one of ours takes part in.
fn possible(objects: &Objects) -> BTreeSet<String> {
    let policies: Vec<&Value> = objects.of_kind("NetworkPolicy").collect();
    let parties = parties(objects);
    let ours = |party: &Party| COMPONENTS.contains(&party.name.as_str());
    let mut found = BTreeSet::new();
    for from in &parties {
        for to in parties.iter().filter(|to| to.name != from.name && (ours(from) || ours(to))) {
            for port in PORTS {
                let out = may(&policies, from, to, ("Egress", "egress", "to"), port);
                if out && may(&policies, to, from, ("Ingress", "ingress", "from"), port) {
                    found.insert(format!("{} -> {} {}/{}", from.name, to.name, port.0, port.1));
                }
            }
        }
    }
    found
}

/// Whom a component of ours reaches, as the policies are: names and TCP ports.
pub(super) fn reached_by(objects: &Objects, component: &str) -> BTreeSet<(String, u16)> {
    let flows = possible(objects).into_iter();
    let to = |flow: String| {
        let (to, port) = flow.strip_prefix(&format!("{component} -> "))?.strip_suffix("/TCP")?.rsplit_once(' ')?;
        Some((to.to_owned(), port.parse().unwrap()))
    };
    flows.filter_map(to).collect()
}

fn wanted() -> BTreeSet<String> {
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [from, to, port] = words[..] else { panic!("{line}") };
        format!("{from} -> {to} {port}")
    };
    FLOWS.trim().lines().map(line).collect()
}

/// What is possible and should not be, and what should be and is not.
pub(super) fn findings(objects: &Objects) -> Vec<String> {
    let (possible, wanted) = (possible(objects), wanted());
    let too_much = possible.difference(&wanted).map(|flow| format!("{flow} is possible"));
    too_much.chain(wanted.difference(&possible).map(|flow| format!("{flow} is not possible"))).collect()
}

#[test]
fn exactly_these_flows_are_possible() {
    assert_eq!(findings(Objects::base()), [""; 0]);
}

/// In ALT_LAS every pod is denied by default, and the servers' own policies know nothing of backups: without the component nothing
/// but names would be reached, with it the same flows as elsewhere, and the others' as before.
#[test]
fn exactly_these_flows_are_possible_where_all_is_denied_by_default() {
    let guarded = Objects::guarded();
    assert_eq!(findings(&guarded), [""; 0]);
    let admitting = |object: &Value| {
        let name = text(&object["metadata"]["name"]);
        name.ends_with("-admits-altlas-backup") || name == "prometheus-scrapes-altlas-backup"
    };
    let without = Objects(guarded.0.iter().filter(|object| !admitting(object)).cloned().collect());
    assert_eq!(guarded.0.len() - without.0.len(), 6);
    assert!(possible(&without).iter().all(|flow| flow.contains("-> kube-dns 53/")), "{:?}", possible(&without));

    let others = |objects: &Objects| {
        let policies: Vec<&Value> = objects.of_kind("NetworkPolicy").collect();
        let archive = Party::pod("archive-service", "alt-las", &[("app", "archive-service")]);
        let database = Party::pod("postgres-db", "alt-las", &[("app", "postgres-db")]);
        let gateway = Party::pod("api-gateway", "alt-las", &[("app", "api-gateway")]);
        [&archive, &gateway].map(|from| {
            may(&policies, from, &database, ("Egress", "egress", "to"), (5432, "TCP"))
                && may(&policies, &database, from, ("Ingress", "ingress", "from"), (5432, "TCP"))
        })
    };
    assert_eq!(others(&guarded), [true, false]);
    assert_eq!(others(&without), [true, false]);
    // The base alone changes nothing for anybody else.
    assert_eq!(others(Objects::base()), [true, true]);
}

#[test]
fn the_matrix_in_the_manifest_is_this_one() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("k8s/base/network-policies.yaml");
    let told = std::fs::read_to_string(file).unwrap();
    let mut rows = told
        .lines()
        .map(|line| line.trim_start_matches("# "))
        .skip_while(|line| !line.trim().starts_with("from \\ to"));
    let header = rows.next().unwrap();
    let columns: Vec<(usize, String)> =
        ["postgres-db 5432", "redis 6379", "nats 4222", "minio 9000", "alertmanager 9093", "DNS 53", "observer 9187"]
            .iter()
            .map(|name| (header.find(name).unwrap() + name.len() / 2, name.replace("DNS", "kube-dns")))
            .collect();
    let mut told = BTreeSet::new();
    for row in rows.take_while(|row| !row.trim().is_empty() && *row != "#") {
        let from = row.split_whitespace().next().unwrap();
        for (at, _) in row.match_indices("yes") {
            let (_, to) = columns.iter().min_by_key(|(middle, _)| middle.abs_diff(at + 1)).unwrap();
            told.insert(format!("{from} -> {to}"));
        }
    }
    let without_protocol = |flow: String| flow.trim_end_matches("/TCP").trim_end_matches("/UDP").to_owned();
    assert_eq!(told, wanted().into_iter().map(without_protocol).collect());
}
