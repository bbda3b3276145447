//! A folder with a configuration file and, if the repository is a local folder, the repository.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use altlas_backup::{
    config::Config,
    operation::{Context, Environment},
    pipeline::Progress,
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use toml::{Table, Value};

use super::{
    binary::Run,
    mode::{self, Identities, Mode},
    nats::Nats,
    postgres::Postgres,
    redis::Redis,
    temp_folder,
};

/// A place for a repository on an S3 server.
#[derive(Clone, Debug)]
pub struct S3Place {
    /// `http://127.0.0.1:PORT`, of a server or of a proxy before it.
    pub endpoint: String,
    /// An existing bucket.
    pub bucket: String,
    /// The repository's prefix in the bucket.
    pub prefix: String,
    /// The key's public half.
    pub access_key_id: String,
    /// Its secret half.
    pub secret_access_key: String,
}

const IDENTITY: &str = "identity";
const CATALOG_IDENTITY: &str = "catalog-identity";

/// A configuration in the making and a folder that goes with it. The folder is removed when dropped.
#[derive(Debug)]
pub struct Workspace {
    folder: TempDir,
    /// The configuration; change what a test needs changed, [`Workspace::config`] writes it.
    pub table: Table,
}

impl Workspace {
    /// A repository in a local folder (not created), no source.
    pub fn folder() -> Self {
        let mut workspace = Self { folder: temp_folder(), table: Table::new() };
        let url = format!("file://{}", workspace.repository_folder().display());
        workspace.set("repository.url", url);
        workspace
    }

    /// A repository on an S3 server, no source.
    pub fn s3(place: &S3Place) -> Self {
        let mut workspace = Self { folder: temp_folder(), table: Table::new() };
        workspace.set("repository.url", format!("s3://{}/{}", place.bucket, place.prefix));
        workspace.set("repository.s3.endpoint", place.endpoint.clone());
        workspace.set("repository.s3.region", "us-east-1");
        workspace.set("repository.s3.path_style", true);
        let id = workspace.secret("s3-access-key-id", &place.access_key_id);
        workspace.set("repository.s3.access_key_id_file", id.display().to_string());
        let secret = workspace.secret("s3-secret-access-key", &place.secret_access_key);
        workspace.set("repository.s3.secret_access_key_file", secret.display().to_string());
        workspace
    }

    /// With a repository that is stored in this mode.
    pub fn mode(self, mode: Mode) -> Self {
        match mode {
            Mode::Clear => self,
            Mode::Encrypted => self.encrypted(Identities::shared()),
        }
    }

    /// With a repository that is encrypted, and both identity files.
    pub fn encrypted(mut self, identities: &Identities) -> Self {
        self.set("repository.encryption.recipients", vec![identities.recipient()]);
        let catalog = self.secret(CATALOG_IDENTITY, &mode::identity_file(&identities.catalog));
        self.set("repository.encryption.catalog_identity_file", catalog.display().to_string());
        let data = self.secret(IDENTITY, &mode::identity_file(&identities.data));
        self.set("repository.encryption.identity_file", data.display().to_string());
        self
    }

    /// With a PostgreSQL source named `database`, as the superuser, of these databases (`["*"]` for all).
    pub fn postgres(self, server: &Postgres, databases: &[&str]) -> Self {
        self.postgres_as("database", &server.url("postgres"), &server.password_file(), databases)
    }

    /// With a PostgreSQL source of any name, address and password file.
    pub fn postgres_as(self, name: &str, url: &str, password_file: &Path, databases: &[&str]) -> Self {
        let mut source = Table::new();
        source.insert("name".into(), name.into());
        source.insert("kind".into(), "postgres".into());
        source.insert("url".into(), url.into());
        source.insert("password_file".into(), password_file.display().to_string().into());
        source.insert("databases".into(), databases.iter().map(|name| Value::from(*name)).collect::<Vec<_>>().into());
        self.source(source)
    }

    /// With a Redis source named `cache`, as the default user.
    pub fn redis(self, server: &Redis) -> Self {
        self.redis_as("cache", &server.url(), &server.password_file())
    }

    /// With a NATS source named `messages`, as the server's own user, of all streams.
    pub fn nats(self, server: &Nats) -> Self {
        self.nats_as("messages", &server.url_with_user(), &server.password_file())
    }

    /// With a NATS source of any name, address (with the user) and password file.
    pub fn nats_as(self, name: &str, url: &str, password_file: &Path) -> Self {
        let mut source = Table::new();
        source.insert("name".into(), name.into());
        source.insert("kind".into(), "nats".into());
        source.insert("url".into(), url.into());
        source.insert("password_file".into(), password_file.display().to_string().into());
        self.source(source)
    }

    /// With a Redis source of any name, address and password file.
    pub fn redis_as(self, name: &str, url: &str, password_file: &Path) -> Self {
        let mut source = Table::new();
        source.insert("name".into(), name.into());
        source.insert("kind".into(), "redis".into());
        source.insert("url".into(), url.into());
        source.insert("password_file".into(), password_file.display().to_string().into());
        self.source(source)
    }

    fn source(mut self, source: Table) -> Self {
        let sources = self.table.entry("source").or_insert_with(|| Value::Array(Vec::new()));
        sources.as_array_mut().unwrap().push(Value::Table(source));
        self
    }

    /// Sets a key by its path: `repository.url`; a number is an index: `source.0.databases`.
    #[track_caller]
    pub fn set(&mut self, path: &str, value: impl Into<Value>) {
        let (parents, last) = path.rsplit_once('.').unwrap_or(("", path));
        let mut table = &mut self.table;
        let mut parents = parents.split('.').filter(|name| !name.is_empty()).peekable();
        while let Some(parent) = parents.next() {
            let entry = table.entry(parent).or_insert_with(|| Value::Table(Table::new()));
            let entry = match parents.peek().and_then(|next| next.parse::<usize>().ok()) {
                Some(index) => {
                    parents.next();
                    &mut entry.as_array_mut().unwrap()[index]
                }
                None => entry,
            };
            table = entry.as_table_mut().unwrap();
        }
        table.insert(last.into(), value.into());
    }

    /// `restore latest` of PostgreSQL into another server than the source's.
    pub fn restore_into(&self, target: &Postgres, more: &[&str]) -> Run {
        let address = format!("database={}", target.url("postgres"));
        let run = self.run(&[&["restore", "latest", "--yes", "--target", &address], more].concat());
        run.env("ALTLAS_BACKUP_TARGET_DATABASE_PASSWORD", target.password())
    }

    /// Writes the configuration and gives its path.
    pub fn config(&self) -> PathBuf {
        let path = self.path("altlas-backup.toml");
        // At once: another thread may be reading what it wrote itself.
        let mut file = tempfile::NamedTempFile::new_in(self.folder.path()).unwrap();
        file.write_all(toml::to_string(&self.table).unwrap().as_bytes()).unwrap();
        file.persist(&path).unwrap();
        path
    }

    /// A run of the program under test with this configuration.
    pub fn run(&self, arguments: &[&str]) -> Run {
        Run::new(arguments).config(self.config())
    }

    /// What an operation of the library needs, with this configuration: for tests that call one too often for a process
    /// each.
    pub fn context(&self) -> Context {
        let environment: Environment = Arc::new(|_| None);
        let config = Config::load(Some(&self.config()), None, &*environment).unwrap();
        Context {
            config: Arc::new(config),
            environment,
            cancel: CancellationToken::new(),
            progress: Arc::new(Progress::default()),
        }
    }

    /// The same configuration with a copy of this one's repository folder, and of its identity files.
    pub fn copy(&self) -> Self {
        let mut copy = Self::folder();
        let url = copy.table["repository"]["url"].clone();
        copy.table = self.table.clone();
        copy.set("repository.url", url);
        for (key, name) in [("catalog_identity_file", CATALOG_IDENTITY), ("identity_file", IDENTITY)] {
            if self.path(name).exists() {
                fs::copy(self.path(name), copy.path(name)).unwrap();
                copy.set(&format!("repository.encryption.{key}"), copy.path(name).display().to_string());
            }
        }
        copy_folder(&self.repository_folder(), &copy.repository_folder());
        copy
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where [`Workspace::folder`] has its repository.
    pub fn repository_folder(&self) -> PathBuf {
        self.path("repository")
    }

    /// Every object of a repository in a local folder, with its bytes.
    pub fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        fn walk(root: &Path, folder: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
            for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
                let path = entry.path();
                if path.is_dir() {
                    walk(root, &path, found);
                } else {
                    let key = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                    found.insert(key, fs::read(path).unwrap());
                }
            }
        }
        let (root, mut found) = (self.repository_folder(), BTreeMap::new());
        walk(&root, &root, &mut found);
        found
    }

    /// The file of the data identity, where the repository is encrypted.
    pub fn identity_file(&self) -> PathBuf {
        self.path(IDENTITY)
    }

    /// The file of the catalogue identity, where the repository is encrypted.
    pub fn catalog_identity_file(&self) -> PathBuf {
        self.path(CATALOG_IDENTITY)
    }

    /// The configured data recipients; none where the repository is not encrypted.
    pub fn recipients(&self) -> Vec<String> {
        let encryption = self.table["repository"].get("encryption");
        let configured = encryption.and_then(|table| table["recipients"].as_array());
        configured.into_iter().flatten().map(|recipient| recipient.as_str().unwrap().to_owned()).collect()
    }

    /// Writes a secret to a file that only we may read.
    pub fn secret(&self, name: &str, secret: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, format!("{secret}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&source, &target);
        } else {
            fs::copy(source, target).unwrap();
        }
    }
}
