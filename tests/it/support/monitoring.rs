//! Debian's Prometheus and Alertmanager, with configurations that lose no time.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use super::{free_port, process, temp_folder, tools, wait_for};

const READY_WITHIN: Duration = Duration::from_secs(60);

/// Status and body of a GET; nothing where there is no answer.
pub fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// A server that is killed, and its folder removed, when it is dropped.
struct Server {
    child: Child,
    port: u16,
    folder: TempDir,
}

impl Server {
    fn start(program: &Path, folder: TempDir, port: u16, arguments: &[String]) -> Self {
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let mut command: Command = process::bound_command(program, false);
        command.args(arguments).current_dir(folder.path()).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let mut server = Self { child: process::spawn(command).unwrap(), port, folder };
        wait_for("a server of the monitoring", READY_WITHIN, || {
            let ended = server.child.try_wait().unwrap();
            assert!(ended.is_none(), "it ended: {}", fs::read_to_string(server.folder.path().join("log")).unwrap());
            get(port, "/-/ready").filter(|(status, _)| *status == 200)
        });
        server
    }

    fn json(&self, path: &str) -> Value {
        let (status, body) = get(self.port, path).expect("an answer");
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An Alertmanager that tells a webhook of each alert by itself, at once.
pub struct Alertmanager(Server);

impl Alertmanager {
    /// Starts one.
    pub fn start(webhook: &str) -> Self {
        let (folder, port) = (temp_folder(), free_port());
        let config = folder.path().join("alertmanager.yml");
        let text = format!(
            "route:\n  receiver: test\n  group_by: ['...']\n  group_wait: 100ms\n  group_interval: 500ms\n  repeat_interval: 4h\n\
             receivers:\n  - name: test\n    webhook_configs:\n      - url: {webhook}\n        send_resolved: true\n"
        );
        fs::write(&config, text).unwrap();
        let arguments = [
            format!("--config.file={}", config.display()),
            format!("--storage.path={}", folder.path().join("data").display()),
            format!("--web.listen-address=127.0.0.1:{port}"),
            "--cluster.listen-address=".to_owned(),
        ];
        Self(Server::start(&tools::alertmanager(), folder, port, &arguments))
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.0.port)
    }

    /// The alerts that are up.
    pub fn alerts(&self) -> Vec<Value> {
        self.0.json("/api/v2/alerts").as_array().unwrap().clone()
    }
}

/// A Prometheus that scrapes one target twice a second.
pub struct Prometheus(Server);

impl Prometheus {
    /// Starts one with these rules, which tells this Alertmanager.
    pub fn start(target: &str, rules: &str, alertmanager: &Alertmanager) -> Self {
        let (folder, port) = (temp_folder(), free_port());
        let path = |name: &str| -> PathBuf { folder.path().join(name) };
        fs::write(path("rules.yaml"), rules).unwrap();
        let text = format!(
            "global:\n  scrape_interval: 500ms\n  scrape_timeout: 400ms\n  evaluation_interval: 500ms\n\
             rule_files: [rules.yaml]\n\
             scrape_configs:\n  - job_name: altlas-backup\n    static_configs:\n      - targets: ['{target}']\n\
             alerting:\n  alertmanagers:\n    - static_configs:\n        - targets: ['127.0.0.1:{}']\n",
            alertmanager.0.port
        );
        fs::write(path("prometheus.yml"), text).unwrap();
        let arguments = [
            format!("--config.file={}", path("prometheus.yml").display()),
            format!("--storage.tsdb.path={}", path("data").display()),
            format!("--web.listen-address=127.0.0.1:{port}"),
            "--rules.alert.resend-delay=1s".to_owned(),
        ];
        Self(Server::start(&tools::prometheus(), folder, port, &arguments))
    }

    /// The value of the only series that this query gives, if there is one.
    pub fn value(&self, query: &str) -> Option<f64> {
        let answer = self.0.json(&format!("/api/v1/query?query={query}"));
        answer["data"]["result"][0]["value"][1].as_str()?.parse().ok()
    }

    /// The names of the alerts that fire.
    pub fn firing(&self) -> Vec<String> {
        let answer = self.0.json("/api/v1/alerts");
        let alerts = answer["data"]["alerts"].as_array().unwrap().clone();
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        firing.map(|alert| alert["labels"]["alertname"].as_str().unwrap().to_owned()).collect()
    }
}
