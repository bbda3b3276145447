//! Kubernetes objects as they are rendered, and what is where in them.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    sync::OnceLock,
};

use serde_json::Value;

use crate::support::{fixture, tools};

/// The oldest and the newest version of Kubernetes that the manifests are for, as far as the schemas go.
const VERSIONS: [&str; 2] = ["1.29", "1.37"];

/// Every component of ours, by the label `app.kubernetes.io/component`.
pub(super) const COMPONENTS: [&str; 4] = ["backup", "verify", "prune", "observer"];

/// Objects, in the order in which they were rendered.
#[derive(Clone, Debug)]
pub(super) struct Objects(pub(super) Vec<Value>);

/// What is made into pods.
#[derive(Clone, Copy, Debug)]
pub(super) struct Template<'a> {
    /// `CronJob/altlas-backup`.
    pub(super) owner: &'a Value,
    pub(super) metadata: &'a Value,
    pub(super) spec: &'a Value,
}

impl Objects {
    /// `k8s/base`.
    pub(super) fn base() -> &'static Self {
        static BASE: OnceLock<Objects> = OnceLock::new();
        BASE.get_or_init(|| Self::rendered(&Path::new(env!("CARGO_MANIFEST_DIR")).join("k8s/base")))
    }

    /// The base in a namespace that denies by default, with the component that is for that.
    pub(super) fn guarded() -> Self {
        Self::rendered(&fixture("cluster/guarded"))
    }

    /// A folder with a kustomization, rendered; it keeps to the schemas.
    fn rendered(folder: &Path) -> Self {
        let rendered = Command::new(tools::kubectl()).arg("kustomize").arg(folder).output().unwrap();
        let words = String::from_utf8_lossy(&rendered.stderr).into_owned();
        assert!(rendered.status.success(), "{}: {words}", folder.display());
        assert_eq!(words, "", "kustomize has something to say of {}", folder.display());
        let (objects, problems) = read(&rendered.stdout);
        assert_eq!(problems, [""; 0], "{}", folder.display());
        objects
    }

    /// What the schemas say of them as they are now.
    pub(super) fn schema_problems(&self) -> Vec<String> {
        let documents: Vec<String> = self.0.iter().map(|object| format!("---\n{object}\n")).collect();
        read(documents.concat().as_bytes()).1
    }

    pub(super) fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.0.iter().filter(move |object| object["kind"] == kind)
    }

    #[track_caller]
    pub(super) fn get(&self, kind: &str, name: &str) -> &Value {
        let found = self.0.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
        found.unwrap_or_else(|| panic!("no {kind}/{name}"))
    }

    #[track_caller]
    pub(super) fn get_mut(&mut self, kind: &str, name: &str) -> &mut Value {
        let found = self.0.iter_mut().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
        found.unwrap_or_else(|| panic!("no {kind}/{name}"))
    }

    /// Everything that is made into pods.
    pub(super) fn templates(&self) -> Vec<Template<'_>> {
        let pod = |owner| {
            let place = pod_place(owner)?;
            let template = owner.pointer(place)?;
            Some(Template { owner, metadata: &template["metadata"], spec: &template["spec"] })
        };
        self.0.iter().filter_map(pod).collect()
    }

    /// The one template of a component of ours.
    #[track_caller]
    pub(super) fn template(&self, component: &str) -> Template<'_> {
        let mut found: Vec<_> =
            self.templates().into_iter().filter(|found| found.component() == Some(component)).collect();
        assert_eq!(found.len(), 1, "templates of {component}");
        found.remove(0)
    }

    /// The configuration of our pods, as a file's name and its text.
    #[track_caller]
    pub(super) fn configuration(&self) -> (&str, &str) {
        let maps: Vec<&Value> = self.of_kind("ConfigMap").collect();
        let [map] = maps[..] else { panic!("{} ConfigMaps", maps.len()) };
        let data = map["data"].as_object().unwrap();
        assert_eq!(data.len(), 1, "{data:?}");
        let (name, text) = data.iter().next().unwrap();
        (name, text.as_str().unwrap())
    }
}

impl<'a> Template<'a> {
    pub(super) fn name(&self) -> String {
        name_of(self.owner)
    }

    /// One of [`COMPONENTS`]; nothing where it is not ours.
    pub(super) fn component(&self) -> Option<&'a str> {
        let labels = &self.metadata["labels"];
        (labels["app.kubernetes.io/name"] == "altlas-backup").then_some(())?;
        labels["app.kubernetes.io/component"].as_str()
    }

    /// Every container, those that run first included.
    pub(super) fn containers(&self) -> impl Iterator<Item = &'a Value> {
        ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|kind| list(&self.spec[kind]))
    }

    /// The container that every pod of ours has.
    pub(super) fn container(&self) -> &'a Value {
        &self.spec["containers"][0]
    }

    pub(super) fn volumes(&self) -> impl Iterator<Item = &'a Value> {
        list(&self.spec["volumes"])
    }
}

/// Where an object has its pod template.
pub(super) fn pod_place(object: &Value) -> Option<&'static str> {
    match object["kind"].as_str()? {
        "Pod" => Some(""),
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "Job" => Some("/spec/template"),
        "CronJob" => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

pub(super) fn name_of(object: &Value) -> String {
    format!("{}/{}", text(&object["kind"]), text(&object["metadata"]["name"]))
}

/// The items of a list; none where there is no list.
pub(super) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A text; empty where there is none.
pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Objects in YAML, with what the schemas say of them.
fn read(yaml: &[u8]) -> (Objects, Vec<String>) {
    let mut command = tools::python_k8s();
    command.arg(fixture("cluster/objects.py")).args(VERSIONS);
    let mut python = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    python.stdin.take().unwrap().write_all(yaml).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "objects.py: {}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let problems = list(&found["problems"]).map(|problem| text(problem).to_owned()).collect();
    (Objects(found["objects"].as_array().unwrap().clone()), problems)
}

/// Every value under a key of this name, anywhere, with the object that it is in.
pub(super) fn under<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                if name == key {
                    found.push(value);
                }
                under(value, key, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| under(item, key, found)),
        _ => {}
    }
}
