//! A pod of the manifests, run on this machine as it stands there.
//!
//! Its container gets the files, folders, environment, user and group that the YAML says, in a root that holds what the image holds of
//! Debian (`/usr` is this machine's) and that cannot be written to. It is process 1, has no rights, and knows by name whom the network
//! policies let it reach. What is not as in a cluster: it shares this machine's network, and nothing limits its memory.
//!
//! With `ALTLAS_IMAGE_ROOT`, the folder of an unpacked image (`docker export`), `/usr` and `/etc/passwd` are that image's.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
};

use rustix::process::{Pid, Signal};
use serde_json::Value;
use tempfile::TempDir;

use super::{
    flows,
    image::Image,
    objects::{Objects, Template, list, text},
    rules::USER,
    settings,
};
use crate::support::{
    binary::{Run, Running},
    fixture, free_port,
    proxy::TcpProxy,
    temp_folder,
};

/// Folders of the PATH of images that are made from Debian's.
const PATH: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Where the image's files are: this machine's root, which is Debian's too.
fn image_root() -> PathBuf {
    std::env::var_os("ALTLAS_IMAGE_ROOT").map_or_else(|| "/".into(), PathBuf::from)
}

/// A server of the cluster: a name and a port that lead to a server of the tests.
struct Host {
    name: &'static str,
    proxy: TcpProxy,
}

/// Where pods run: the objects as rendered, what whoever applies them brings, and the servers.
pub(super) struct Node {
    objects: Objects,
    /// By Secret and key.
    secrets: BTreeMap<(String, String), String>,
    hosts: Vec<Host>,
    image: Image,
    /// Where the observer listens.
    port: u16,
    folder: TempDir,
    pods: Cell<u32>,
}

impl Node {
    /// With the base. All that is changed in it: `keys` in place of [`settings::PLACEHOLDERS`], and a free port of this machine in place
    /// of the observer's.
    pub(super) fn new(keys: [&str; 3]) -> Self {
        let mut objects = Objects::base().clone();
        let port = free_port();
        let map = objects.0.iter_mut().find(|object| object["kind"] == "ConfigMap").unwrap();
        for text in map["data"].as_object_mut().unwrap().values_mut() {
            let with_keys = settings::with_keys(text.as_str().unwrap(), keys);
            assert_eq!(with_keys.matches("\"[::]:9187\"").count(), 1);
            *text = with_keys.replace("\"[::]:9187\"", &format!("\"[::]:{port}\"")).into();
        }
        Self {
            objects,
            secrets: BTreeMap::new(),
            hosts: Vec::new(),
            image: Image::read(),
            port,
            folder: temp_folder(),
            pods: Cell::new(0),
        }
    }

    /// Brings a Secret's value.
    pub(super) fn secret(mut self, name: &str, key: &str, value: &str) -> Self {
        self.secrets.insert((name.to_owned(), key.to_owned()), value.to_owned());
        self
    }

    /// A server by a name and its port, on a loopback address of its own.
    pub(super) fn host(mut self, name: &'static str, port: u16, target: SocketAddr) -> Self {
        let listener = (0..50).find_map(|_| {
            let [b, c, d] = rand::random::<[u8; 3]>();
            TcpListener::bind((Ipv4Addr::new(127, b | 1, c, d | 1), port)).ok()
        });
        self.hosts.push(Host { name, proxy: TcpProxy::start_on(listener.expect("a loopback address"), target) });
        self
    }

    /// How often somebody connected to a server by its name.
    #[track_caller]
    pub(super) fn connections(&self, name: &str) -> u64 {
        self.hosts.iter().find(|host| host.name == name).unwrap().proxy.connections()
    }

    /// What the observer answers to a probe of its container, if it does: a status, and the text.
    pub(super) fn probe(&self, probe: &str) -> Option<(u16, String)> {
        let get = &self.objects.template("observer").container()[probe]["httpGet"];
        self.get(text(&get["path"]))
    }

    /// What the observer answers.
    pub(super) fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: observer\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
    }

    /// A pod of a component that was not started yet.
    pub(super) fn pod(&self, component: &str) -> Pod<'_> {
        let number = self.pods.replace(self.pods.get() + 1);
        let pod = Pod {
            node: self,
            template: self.objects.template(component),
            folder: self.folder.path().join(number.to_string()),
            named: true,
        };
        fs::create_dir(&pod.folder).unwrap();
        pod.make_root();
        pod
    }
}

/// A pod, with the folders that go with it and what was left in them.
pub(super) struct Pod<'a> {
    node: &'a Node,
    template: Template<'a>,
    folder: PathBuf,
    named: bool,
}

impl Pod<'_> {
    /// With an image whose `/etc/passwd` does not know its user.
    pub(super) fn without_name(mut self) -> Self {
        self.named = false;
        self.write_passwd();
        self
    }

    /// Its container's command, as it stands in the manifest.
    pub(super) fn run(&self) -> Run {
        let container = self.template.container();
        let command: Vec<&str> = list(&container["command"]).chain(list(&container["args"])).map(text).collect();
        self.run_other(&command)
    }

    /// Another command in its place, as whoever looks into a cluster runs one.
    pub(super) fn run_other(&self, command: &[&str]) -> Run {
        let security = &self.template.spec["securityContext"];
        let number = |field: &str| security[field].as_u64().unwrap().to_string();
        let mut before =
            vec!["unshare".to_owned(), "--mount".into(), "--pid".into(), "--fork".into(), "--kill-child".into()];
        before.extend(["sh", "-eu"].map(str::to_owned));
        before.extend([shown(&fixture("cluster/pod.sh")), shown(&self.root())]);
        before.extend(["runAsUser", "runAsGroup", "fsGroup"].map(number));
        for (source, target, read_only) in self.mounts() {
            before.extend([shown(&source), target, if read_only { "ro" } else { "rw" }.to_owned()]);
        }
        before.push("--".into());
        let before: Vec<&str> = before.iter().map(String::as_str).collect();
        let mut run = Run::new(command).through(&before).path(&PATH.map(Path::new));
        for (name, value) in &self.node.image.environment {
            run = run.env(name, value);
        }
        for variable in list(&self.template.container()["env"]) {
            run = run.env(text(&variable["name"]), text(&variable["value"]));
        }
        run
    }

    /// What is in one of its volumes.
    pub(super) fn left_in(&self, volume: &str) -> Vec<String> {
        let entries = fs::read_dir(self.volume(volume)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().display().to_string()).collect()
    }

    fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    fn volume(&self, name: &str) -> PathBuf {
        self.folder.join("volumes").join(name)
    }

    /// What the image and the container's runtime bring, without what is mounted from this machine.
    fn make_root(&self) {
        let root = self.root();
        for folder in ["usr", "proc", "dev/shm", "etc/ssl", "run", "var/tmp", "root"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        for folder in ["bin", "sbin", "lib", "lib64"] {
            symlink(format!("usr/{folder}"), root.join(folder)).unwrap();
        }
        for device in ["null", "zero", "full", "random", "urandom"] {
            fs::write(root.join("dev").join(device), "").unwrap();
        }
        for file in ["nsswitch.conf", "ld.so.cache"] {
            fs::copy(image_root().join("etc").join(file), root.join("etc").join(file)).unwrap();
        }
        let reached = flows::reached_by(&self.node.objects, self.template.component().unwrap());
        let hosts = self.node.hosts.iter().filter(|host| reached.contains(&(host.name.to_owned(), host.proxy.port())));
        let line = |host: &Host| format!("{} {}\n", host.proxy.address().ip(), host.name);
        let hosts: String = hosts.map(line).collect();
        fs::write(root.join("etc/hosts"), format!("127.0.0.1 localhost\n{hosts}")).unwrap();
        // What stands before the tests' program in the image's folder for it.
        fs::create_dir_all(self.folder.join("local-bin")).unwrap();
        fs::write(self.folder.join("local-bin/altlas-backup"), "").unwrap();
        for (_, target, _) in self.volumes() {
            fs::create_dir_all(root.join(target.trim_start_matches('/'))).unwrap();
        }
        self.write_passwd();
    }

    fn write_passwd(&self) {
        let host = fs::read_to_string(image_root().join("etc/passwd")).unwrap();
        let others = host.lines().filter(|line| line.split(':').nth(2) != Some(&USER.to_string()));
        let own = self.named.then_some(self.node.image.passwd.as_str());
        let lines: Vec<&str> = others.chain(own).collect();
        fs::write(self.root().join("etc/passwd"), lines.join("\n") + "\n").unwrap();
    }

    /// From where, to where, and may it only be read?
    fn mounts(&self) -> Vec<(PathBuf, String, bool)> {
        let mut mounts: Vec<(PathBuf, String, bool)> = vec![
            (image_root().join("usr"), "/usr".into(), true),
            ("/etc/ssl".into(), "/etc/ssl".into(), true),
            (self.folder.join("local-bin"), "/usr/local/bin".into(), true),
            (env!("CARGO_BIN_EXE_altlas-backup").into(), self.node.image.program.clone(), true),
        ];
        for device in ["null", "zero", "full", "random", "urandom"] {
            let path = format!("/dev/{device}");
            mounts.push((path.clone().into(), path, false));
        }
        mounts.extend(self.volumes());
        mounts
    }

    /// The container's volumes, filled as the kubelet fills them.
    fn volumes(&self) -> Vec<(PathBuf, String, bool)> {
        let made = list(&self.template.container()["volumeMounts"]).map(|mount| {
            let volume = self.template.volumes().find(|volume| volume["name"] == mount["name"]).unwrap();
            let path = self.volume(text(&volume["name"]));
            let is_new = !path.exists();
            fs::create_dir_all(&path).unwrap();
            let may_write = volume["emptyDir"].is_object();
            if is_new {
                self.fill(&path, volume);
            }
            (path, text(&mount["mountPath"]).to_owned(), !may_write || mount["readOnly"] == true)
        });
        made.collect()
    }

    fn fill(&self, path: &Path, volume: &Value) {
        let group = self.template.spec["securityContext"]["fsGroup"].as_u64().unwrap();
        let group = Some(u32::try_from(group).unwrap());
        let set = |path: &Path, mode: u64| {
            chown(path, Some(0), group).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(u32::try_from(mode).unwrap())).unwrap();
        };
        if let Some(name) = volume["configMap"]["name"].as_str() {
            for (file, text) in self.node.objects.get("ConfigMap", name)["data"].as_object().unwrap() {
                fs::write(path.join(file), text.as_str().unwrap()).unwrap();
                set(&path.join(file), 0o644);
            }
        } else if let Some(name) = volume["secret"]["secretName"].as_str() {
            let mode = volume["secret"]["defaultMode"].as_u64().unwrap();
            for item in list(&volume["secret"]["items"]) {
                let key = (name.to_owned(), text(&item["key"]).to_owned());
                let value = self.node.secrets.get(&key).unwrap_or_else(|| panic!("nobody brought {key:?}"));
                let file = path.join(text(&item["path"]));
                fs::write(&file, value).unwrap();
                // With an fsGroup, the group may read what the owner may.
                set(&file, mode | (mode & 0o400) >> 3);
            }
        } else {
            assert!(volume["emptyDir"].is_object(), "{volume}");
            set(path, 0o2777);
        }
    }
}

/// Tells a pod's first process to end, as the kubelet does.
pub(super) fn terminate(running: &Running) {
    let first = fs::read_to_string(format!("/proc/{0}/task/{0}/children", running.id())).unwrap();
    let first = Pid::from_raw(first.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(first, Signal::TERM).unwrap();
}

fn shown(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}
