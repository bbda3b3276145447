//! Nothing that is said or stored in clear tells what a database holds, or a secret: not an object of an encrypted repository,
//! not its name, not an output or log of any run, not an argument or the environment of a child, not a file left behind.

mod nats;
mod redis;
mod search;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use altlas_backup::{
    crypt::{self, Identities},
    store::{S3Backend, S3Options, Store},
};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use self::search::{Class, Evidence, Needle, OnPurpose, Search};
use crate::support::{
    binary::{Output, Run, Running},
    free_port,
    postgres::{Major, Postgres},
    proxy::{Chunk, TcpProxy},
    s3::{self, BlockingS3, S3Kind},
    temp_folder, tools, wait_for,
    workspace::{S3Place, Workspace},
};

const SOON: Duration = Duration::from_secs(60);

/// The role in the configuration, which may be named: a superuser, so that it sees every password's hash.
const OPERATOR: &str = "configured_operator";
/// The database in the configuration, which may be named.
const DATABASE: &str = "ledger";
const PASSWORDS: [(&str, &str); 3] = [
    ("the source's password", "pw-Axolotl-4711-Quincunx"),
    ("a wrong password", "pw-wrong-Bandersnatch-0815"),
    ("a role's password", "plumage-of-Quetzal-77"),
];
const SESSION_TOKEN: &str = "session-token-of-Jabberwock-1871";

const ACCESS_KEY_ID: &str = "the access key's id";

/// Beside the fixture: words of which nobody could say that they are a coincidence.
const WORDS: &str = "
    CREATE ROLE quetzal_keeper LOGIN PASSWORD 'plumage-of-Quetzal-77';
    COMMENT ON ROLE quetzal_keeper IS 'remark on Rigmarole';
    CREATE SCHEMA xylophage AUTHORIZATION quetzal_keeper;
    CREATE TYPE xylophage.gorgonzola AS ENUM ('stracchino_mild', 'taleggio_strong');
    CREATE SEQUENCE xylophage.kumquat_counter START 7733001;
    CREATE FUNCTION xylophage.snollygoster() RETURNS text LANGUAGE sql AS $$ SELECT 'body of Collywobbles' $$;
    CREATE TABLE xylophage.zymurgy (
        brachiosaur_id bigint DEFAULT nextval('xylophage.kumquat_counter') CONSTRAINT lollapalooza PRIMARY KEY,
        oubliette text DEFAULT 'default of Sarsaparilla',
        widdershins numeric,
        kaleidobyte bytea,
        camembert xylophage.gorgonzola);
    INSERT INTO xylophage.zymurgy (oubliette, widdershins, kaleidobyte, camembert)
        SELECT 'Taradiddle of ' || n, 90210.77345519 + n, convert_to('Hullaballoo', 'UTF8'), 'taleggio_strong'
        FROM generate_series(1, 50) AS n;
    CREATE INDEX borborygmus ON xylophage.zymurgy (oubliette) WHERE oubliette <> 'predicate of Flapdoodle';
    COMMENT ON COLUMN xylophage.zymurgy.oubliette IS 'remark on Flibbertigibbet';
    ALTER DATABASE ledger SET app.setting = 'setting of Skullduggery';";

/// What of that is neither a name in the catalog nor sampled.
const VALUES: [&str; 9] = [
    "stracchino_mild",
    "taleggio_strong",
    "remark on Rigmarole",
    "body of Collywobbles",
    "default of Sarsaparilla",
    "Hullaballoo",
    "predicate of Flapdoodle",
    "remark on Flibbertigibbet",
    "setting of Skullduggery",
];

/// Names of the fixture that say nothing, since our own logs, records and help use the same words.
const EVERYDAY: [&str; 9] =
    ["sequence", "content", "status", "version", "duration", "metadata", "timestamp", "details", "checksum"];

/// Databases that back up and cannot be restored, each for rows that the server's error repeats.
const BROKEN: [(&str, &str); 3] = [
    (
        "broken_check",
        "CREATE FUNCTION fits(text) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT true';
         CREATE TABLE checked (checked_word text CONSTRAINT checked_fits CHECK (public.fits(checked_word)));
         INSERT INTO checked VALUES ('Unconfessed-Check');
         CREATE OR REPLACE FUNCTION fits(text) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT $1 = ''x'''",
    ),
    (
        "broken_key",
        "CREATE TABLE parental (parental_word text PRIMARY KEY);
         CREATE TABLE orphaned (orphan_word text CONSTRAINT orphan_key REFERENCES parental);
         SET session_replication_role = replica; INSERT INTO orphaned VALUES ('Unconfessed-Orphan')",
    ),
    (
        "broken_index",
        "CREATE FUNCTION pressed(text) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 1';
         CREATE TABLE indexed (indexed_word text); INSERT INTO indexed VALUES ('Unconfessed-Index');
         CREATE INDEX pressed_index ON indexed (public.pressed(indexed_word));
         CREATE OR REPLACE FUNCTION pressed(text) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1::int'",
    ),
];

/// `show` and `restore` tell on stdout what a backup holds: its tables, by database and schema.
const SHOWS_NAMES: &[Class] = &[Class::Name];
/// As JSON, `show` prints the manifest, with the columns of each table.
const SHOWS_MANIFEST: &[Class] = &[Class::Name, Class::Column];
/// The plan of a restore, on stderr, names the roles that it will create and those that it will leave alone.
const SHOWS_ROLES: &[Class] = &[Class::Role];

/// For people and as JSON, each at the default verbosity and with all that can be said.
const WAYS: [&[&str]; 4] = [&["-v", "-v"], &[], &["--json"], &["--json", "-v", "-v"]];

/// A source, a target, and a repository on either kind of store, with everything that was seen of them.
struct Place {
    label: String,
    source: Arc<Postgres>,
    target: Postgres,
    workspace: Workspace,
    /// Where the program runs, its temporary folder, and what its children wrote down.
    ground: TempDir,
    /// Identities: of data, of an escrow, of the catalogue, of somebody else.
    identities: Vec<PathBuf>,
    evidence: Mutex<Vec<Evidence>>,
}

impl Place {
    fn new(label: &str, source: Arc<Postgres>, target: Postgres, workspace: Workspace) -> Self {
        let ground = temp_folder();
        for folder in ["here", "tmp", "children", "tools"] {
            fs::create_dir(ground.path().join(folder)).unwrap();
        }
        let url = format!("postgres://{OPERATOR}@127.0.0.1:{}/postgres", source.port());
        let password = workspace.secret("password", PASSWORDS[0].1);
        let mut workspace = workspace.postgres_as("database", &url, &password, &[DATABASE]);
        workspace.set("source.0.tools_dir", ground.path().join("tools").display().to_string());
        for program in ["pg_dump", "pg_dumpall", "pg_restore", "psql"] {
            let real = tools::client_program(source.major(), program);
            // What the kernel was given, not what the shell made of it.
            let script = format!(
                "#!/bin/sh\ncat /proc/$$/cmdline /proc/$$/environ >>{}/{program}.$$\nexec {} \"$@\"\n",
                ground.path().join("children").display(),
                real.display()
            );
            let path = ground.path().join("tools").join(program);
            fs::write(&path, script).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let (label, evidence) = (label.to_owned(), Mutex::default());
        Self { label, source, target, workspace, ground, identities: Vec::new(), evidence }
    }

    /// Makes keys, which tells nothing of them, and encrypts from now on.
    fn encrypted(mut self) -> Self {
        let mut recipients = Vec::new();
        for name in ["data", "escrow", "catalog", "stranger"] {
            let path = self.workspace.path(&format!("{name}.identity"));
            let file = path.display().to_string();
            let made = self.run(Run::new(&["keygen", "-v", "-v", "--json", "--output", &file]), "keygen", |_| {});
            recipients.push(made.assert_code(0).json()["recipient"].as_str().unwrap().to_owned());
            self.identities.push(path);
        }
        let file = |n: usize| self.identities[n].display().to_string();
        let (data, catalog) = (file(0), file(2));
        self.workspace.set("repository.encryption.recipients", recipients[..2].to_vec());
        self.workspace.set("repository.encryption.identity_file", data);
        self.workspace.set("repository.encryption.catalog_identity_file", catalog);
        self
    }

    fn saw(&self, at: String, bytes: impl Into<Vec<u8>>, on_purpose: &OnPurpose) {
        let evidence =
            Evidence { at: format!("{}: {at}", self.label), bytes: bytes.into(), on_purpose: on_purpose.clone() };
        self.evidence.lock().unwrap().push(evidence);
    }

    /// Runs the program in folders of its own and keeps all that can be seen of it. `meanwhile` is done while it runs.
    fn run(&self, run: Run, what: &str, meanwhile: impl FnOnce(&Running)) -> Output {
        self.run_on_purpose(run, what, &OnPurpose::default(), &OnPurpose::default(), meanwhile)
    }

    fn run_on_purpose(
        &self,
        run: Run,
        what: &str,
        stdout: &OnPurpose,
        stderr: &OnPurpose,
        meanwhile: impl FnOnce(&Running),
    ) -> Output {
        let folder = |name: &str| self.ground.path().join(name).display().to_string();
        let temporary = format!("TMPDIR={}", folder("tmp"));
        let running = run.through(&["env", "-C", &folder("here"), &temporary]).deadline(SOON).spawn();
        let of_process = |file: &str| fs::read(format!("/proc/{}/{file}", running.id())).unwrap_or_default();
        // `env` becomes the program; of one that has ended already there is nothing to be seen, for anybody.
        let seen = wait_for("the program to be started", SOON, || {
            let seen = [of_process("cmdline"), of_process("environ")].concat();
            (seen.is_empty() || !seen.starts_with(b"env\0")).then_some(seen)
        });
        self.saw(format!("{what}: own arguments and environment"), seen, &OnPurpose::default());
        meanwhile(&running);
        let output = running.wait();
        self.saw(format!("{what}: stdout"), output.stdout.as_bytes(), stdout);
        self.saw(format!("{what}: stderr"), output.stderr.as_bytes(), stderr);
        output
    }

    fn one_way(&self, arguments: &[&str], way: &[&str], stdout: &OnPurpose, stderr: &OnPurpose) {
        let arguments = [arguments, way].concat();
        let what = arguments.join(" ");
        self.run_on_purpose(self.workspace.run(&arguments), &what, stdout, stderr, |_| {}).assert_code(0);
    }

    /// Backups with changed rows between them, every command that reads, and restores into another server.
    fn tour(&self, ways: &[&[&str]]) {
        let nothing = OnPurpose::default();
        self.one_way(&["init"], ways[0], &nothing, &nothing);
        for way in ways {
            self.one_way(&["backup"], way, &nothing, &nothing);
            self.source.psql(DATABASE, "UPDATE last_files SET success_rate = random(); DELETE FROM tags WHERE id = 3");
            self.one_way(&["doctor"], way, &nothing, &nothing);
            self.one_way(&["list"], way, &nothing, &nothing);
            self.one_way(&["verify", "--level", "presence"], way, &nothing, &nothing);
            self.one_way(&["verify", "--level", "content"], way, &nothing, &nothing);
            let shown = if way.contains(&"--json") { SHOWS_MANIFEST } else { SHOWS_NAMES };
            self.one_way(&["show", "latest"], way, &OnPurpose::of(shown), &nothing);
        }
        let restore = ["restore", "latest", "--yes", "--target", &self.target_argument()];
        for more in [&[][..], &["--overwrite", "--json"], &["--overwrite", "-v", "-v"]].iter().take(ways.len()) {
            self.one_way(&restore, more, &OnPurpose::of(SHOWS_NAMES), &OnPurpose::of(SHOWS_ROLES));
        }
    }

    fn target_argument(&self) -> String {
        format!("database=postgres://{OPERATOR}@127.0.0.1:{}/postgres", self.target.port())
    }

    /// Every object, by its name, and every file that was left behind; the keys in it, to be looked for.
    fn look(&self, objects: Vec<(String, Vec<u8>)>) -> Vec<Needle> {
        let data = self.identities.first().map(|path| Identities::parse(&fs::read_to_string(path).unwrap()).unwrap());
        let mut keys = Vec::new();
        for (name, bytes) in objects {
            if name.contains("/keys.json") {
                let plain = match &data {
                    Some(identity) => std::io::read_to_string(crypt::decrypt(identity, &bytes).unwrap()).unwrap(),
                    None => String::from_utf8(bytes.clone()).unwrap(),
                };
                let record: Value = serde_json::from_str(&plain).unwrap();
                for key in ["naming", "mac", "fingerprint"] {
                    let hex = record[key].as_str().unwrap();
                    let raw = (0..hex.len() / 2).map(|n| u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).unwrap());
                    keys.push(Needle::new(
                        Class::Secret,
                        format!("{}: {key} key", self.label),
                        raw.collect::<Vec<_>>(),
                    ));
                }
            }
            self.saw(format!("object {name}"), [name.as_bytes(), b"\n", &bytes].concat(), &OnPurpose::default());
        }
        for (name, bytes) in files(&self.ground.path().join("children")) {
            self.saw(format!("child {name}"), bytes, &OnPurpose::default());
        }
        for folder in ["here", "tmp"] {
            assert_eq!(files(&self.ground.path().join(folder)), [], "{}: left behind", self.label);
        }
        keys
    }

    /// The identities of this place, as their files have them and as bytes.
    fn identity_needles(&self) -> Vec<Needle> {
        let text = |path: &PathBuf| fs::read_to_string(path).unwrap();
        let identity =
            |path: &PathBuf| text(path).lines().find(|line| line.starts_with("AGE-SECRET")).unwrap().to_owned();
        let needles = |path: &PathBuf| {
            let shown = path.file_name().unwrap().display().to_string();
            let (_, raw) = bech32::decode(&identity(path)).unwrap();
            [Needle::new(Class::Secret, shown.clone(), identity(path)), Needle::new(Class::Secret, shown, raw)]
        };
        self.identities.iter().flat_map(needles).collect()
    }
}

/// Every file below a folder, by its path in it.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for path in fs::read_dir(next).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push((path.strip_prefix(folder).unwrap().display().to_string(), fs::read(&path).unwrap()));
            }
        }
    }
    found
}

/// Every object below a prefix of an S3 server.
fn objects(s3: &BlockingS3, place: &S3Place) -> Vec<(String, Vec<u8>)> {
    let options = S3Options {
        endpoint: Some(format!("http://{}", s3.address())),
        region: "us-east-1".to_owned(),
        path_style: true,
        bucket: place.bucket.clone(),
        prefix: place.prefix.clone(),
        access_key_id: place.access_key_id.clone(),
        secret_access_key: place.secret_access_key.clone().into(),
        session_token: None,
        ca_pem: None,
        connect_timeout: Duration::from_secs(10),
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store: Store = s3::store(S3Backend::connect(options).unwrap());
    let get = |key: String| {
        let bytes = runtime.block_on(store.get(&key)).unwrap().to_vec();
        (key, bytes)
    };
    s3.list(&place.bucket, &place.prefix).into_keys().map(get).collect()
}

/// A server whose superuser is in the configuration.
fn server(major: Major) -> Postgres {
    let server = Postgres::start(major);
    server.psql("postgres", &format!("CREATE ROLE {OPERATOR} SUPERUSER LOGIN PASSWORD '{}'", PASSWORDS[0].1));
    server
}

/// With the fixture and [`WORDS`].
fn filled(major: Major) -> Postgres {
    let server = server(major);
    server.create_altlas(DATABASE, 120, 3);
    server.psql(DATABASE, WORDS);
    server
}

/// Names, values, roles and hashes, as the server's own catalog tells them.
fn needles(server: &Postgres) -> Vec<Needle> {
    let mut needles: Vec<Needle> = VALUES.iter().map(|value| Needle::new(Class::Value, *value, value)).collect();
    let lines = |sql: &str| server.psql(DATABASE, sql).lines().map(str::to_owned).collect::<Vec<_>>();
    // Of the user's own objects: nothing of the system's, nothing of an extension's, no array types.
    let own = |class: &str, oid: &str, namespace: &str| {
        format!(
            "{namespace} !~ '^(pg_|information_schema)' AND NOT EXISTS (SELECT FROM pg_depend d \
             WHERE d.classid = '{class}'::regclass AND d.objid = {oid} AND d.deptype = 'e')"
        )
    };
    let mut name_queries =
        vec!["SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema|public)'".into()];
    for (class, name, namespace, more) in [
        ("pg_class", "relname", "relnamespace", ""),
        ("pg_proc", "proname", "pronamespace", ""),
        ("pg_type", "typname", "typnamespace", "AND x.typelem = 0"),
        ("pg_constraint", "conname", "connamespace", "AND x.contype <> 'n'"),
    ] {
        let own = own(class, "x.oid", "n.nspname");
        name_queries.push(format!(
            "SELECT x.{name} FROM {class} x JOIN pg_namespace n ON n.oid = x.{namespace} WHERE {own} {more}"
        ));
    }
    name_queries.push("SELECT tgname FROM pg_trigger WHERE NOT tgisinternal".into());
    let columns = format!(
        "SELECT DISTINCT a.attname, n.nspname, x.relname, format_type(a.atttypid, NULL) FROM pg_attribute a \
         JOIN pg_class x ON x.oid = a.attrelid JOIN pg_namespace n ON n.oid = x.relnamespace \
         WHERE x.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped AND {}",
        own("pg_class", "x.oid", "n.nspname")
    );
    let columns: Vec<Vec<String>> =
        lines(&columns).iter().map(|line| line.split('|').map(str::to_owned).collect()).collect();
    let names = name_queries.iter().flat_map(|query| lines(query)).map(|name| (Class::Name, name));
    for (class, name) in names.chain(columns.iter().map(|column| (Class::Column, column[0].clone()))) {
        if name.len() <= 5 {
            println!("not looked for: {class:?} `{name}`, too short to be anything of its own");
        } else if EVERYDAY.contains(&name.as_str()) {
            println!("not looked for: {class:?} `{name}`, a word of our own");
        } else {
            needles.push(Needle::new(class, name.clone(), name));
        }
    }
    // A run of plain characters out of some values of every column; dates and times are in every log.
    for column in columns
        .iter()
        .filter(|column| !["date", "time", "interval", "boolean"].iter().any(|t| column[3].starts_with(t)))
    {
        let [name, schema, table, _] = &column[..] else { panic!("{column:?}") };
        let sample = format!(
            "SELECT DISTINCT substring(\"{name}\"::text FROM '[A-Za-z0-9][A-Za-z0-9 ._/-]{{8,40}}[A-Za-z0-9]') AS v \
             FROM \"{schema}\".\"{table}\" ORDER BY v LIMIT 4 OFFSET 1"
        );
        let values = lines(&sample).into_iter().filter(|value| !value.is_empty());
        needles.extend(values.map(|value| Needle::new(Class::Value, format!("{table}.{name}: {value}"), value)));
    }
    for role in lines("SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_'") {
        // The configured one may be named; the other two are our own name and a word of every log.
        if ![OPERATOR, "altlas", "postgres"].contains(&role.as_str()) {
            needles.push(Needle::new(Class::Role, role.clone(), role));
        }
    }
    needles.extend(hashes(server));
    needles
}

/// What the passwords' hashes are made of.
fn hashes(server: &Postgres) -> Vec<Needle> {
    let hashes = server.psql("postgres", "SELECT rolpassword FROM pg_authid WHERE rolpassword IS NOT NULL");
    let pieces = hashes.split(['$', ':', '\n']).filter(|piece| piece.len() > 20);
    pieces.map(|piece| Needle::new(Class::Secret, format!("hash {piece}"), piece)).collect()
}

/// A `psql` that holds a lock until it is dropped.
struct Lock(Child);

impl Lock {
    fn on(server: &Postgres, table: &str) -> Self {
        let mut command = server.psql_command(DATABASE);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let sql = format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE;\n");
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), sql.as_bytes()).unwrap();
        let held = format!("SELECT count(*) FROM pg_locks WHERE relation = '{table}'::regclass AND granted");
        wait_for("the lock", SOON, || (server.psql(DATABASE, &held) != "0").then_some(()));
        Self(child)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Place {
    /// The same with changes to the configuration, for runs that fail.
    fn with(&self, changes: &[(&str, &str)]) -> Workspace {
        let mut workspace = self.workspace.copy();
        for (key, value) in changes {
            match (*value, key.rsplit_once('.').unwrap()) {
                ("", (_, last)) => {
                    let encryption = workspace.table["repository"]["encryption"].as_table_mut().unwrap();
                    encryption.remove(last);
                }
                _ => workspace.set(key, *value),
            }
        }
        workspace
    }

    /// For people with all that can be said, and as JSON.
    fn fails(&self, workspace: &Workspace, what: &str, code: i32, arguments: &[&str], on_purpose: &OnPurpose) {
        for more in [&["-v", "-v"][..], &["--json"]] {
            let arguments = [arguments, more].concat();
            let what = format!("{what}: {}", arguments.join(" "));
            self.run_on_purpose(workspace.run(&arguments), &what, on_purpose, on_purpose, |_| {}).assert_code(code);
        }
    }

    fn failures(&self) {
        let nothing = OnPurpose::default();
        let target = self.target_argument();
        let restore = ["restore", "latest", "--yes", "--target", &target, "--database", "ledger=other"];
        let content = ["verify", "--level", "content"];
        let roles = OnPurpose::of(SHOWS_ROLES);

        let wrong = self.workspace.secret("wrong", PASSWORDS[1].1).display().to_string();
        let workspace = self.with(&[("source.0.password_file", &wrong)]);
        self.fails(&workspace, "a wrong password", 1, &["backup"], &nothing);
        self.fails(&workspace, "a wrong password", 1, &["doctor"], &nothing);
        self.fails(&workspace, "a wrong password", 1, &restore, &nothing);

        // Whoever holds a lock is looked for by the table's name, which the error is there to tell.
        let mut workspace = self.with(&[]);
        workspace.set("source.0.lock_timeout", "1s");
        let lock = Lock::on(&self.source, "public.schema_migrations");
        let locked = OnPurpose { classes: &[], words: vec!["schema_migrations".to_owned()] };
        self.fails(&workspace, "a locked table", 1, &["backup"], &locked);
        drop(lock);

        for (what, changes, readable) in [
            ("no data identity", &[("repository.encryption.identity_file", "")][..], true),
            (
                "no identity",
                &[("repository.encryption.identity_file", ""), ("repository.encryption.catalog_identity_file", "")],
                false,
            ),
            (
                "a stranger's identity",
                &[("repository.encryption.identity_file", &self.identities[3].display().to_string())],
                true,
            ),
        ] {
            let workspace = self.with(changes);
            self.fails(&workspace, what, 2, &content, &nothing);
            self.fails(&workspace, what, 2, &restore, &nothing);
            self.fails(&workspace, what, if readable { 0 } else { 2 }, &["backup"], &nothing);
        }

        // Of a damaged part it is told whose it is; of what comes before the parts there is nothing to tell.
        let shown = self.workspace.run(&["--json", "show", "latest"]).ok().json();
        let artifacts = shown["sources"][0]["artifacts"].as_array().unwrap();
        let hit = artifacts.iter().find(|one| one["path"] == "databases/ledger/tables/xylophage.zymurgy").unwrap();
        let part = hit["parts"][0]["name"].as_str().unwrap().to_owned();
        let names = OnPurpose { classes: &[], words: vec!["xylophage".to_owned(), "zymurgy".to_owned()] };
        let both = OnPurpose { classes: SHOWS_ROLES, words: names.words.clone() };
        let id = shown["head"]["backup"].as_str().unwrap();
        for (what, object, verify, restored, shown) in [
            ("a damaged part", part.as_str(), 3, 1, [&names, &both]),
            ("a damaged manifest", &format!("{id}/database.manifest"), 3, 1, [&nothing, &nothing]),
            ("a damaged head", &format!("{id}/head.json"), 3, 1, [&nothing, &roles]),
        ] {
            let workspace = self.with(&[]);
            let objects = files(&workspace.repository_folder());
            let (name, mut bytes) = objects.into_iter().find(|(name, _)| name.contains(object)).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(workspace.repository_folder().join(name), bytes).unwrap();
            self.fails(&workspace, what, verify, &content, shown[0]);
            self.fails(&workspace, what, 0, &["list"], &nothing);
            self.fails(&workspace, what, restored, &[&restore[..1], &[id], &restore[2..]].concat(), shown[1]);
        }

        // Names are told here, values never: the server has them in its own log.
        let broken = OnPurpose::of(&[Class::Name, Class::Role]);
        for (database, sql) in BROKEN {
            self.source.psql("postgres", &format!("CREATE DATABASE {database}"));
            self.source.psql(database, sql);
            let mut workspace = self.with(&[]);
            workspace.set("source.0.databases", vec![database]);
            workspace.run(&["backup"]).ok();
            self.fails(&workspace, database, 1, &restore[..5], &broken);
        }
    }

    /// A store that does not answer, with credentials that nobody else has.
    fn no_store(&self) {
        let closed = format!("http://127.0.0.1:{}", free_port());
        let mut workspace = Workspace::folder();
        workspace.table = self.workspace.table.clone();
        workspace.set("repository.url", "s3://backups/prefix");
        workspace.set("repository.s3.endpoint", closed);
        for (key, secret) in
            [("access_key_id", "AKIA"), ("secret_access_key", PASSWORDS[2].1), ("session_token", SESSION_TOKEN)]
        {
            let file = workspace.secret(key, secret).display().to_string();
            workspace.set(&format!("repository.s3.{key}_file"), file);
        }
        self.fails(&workspace, "no store", 1, &["list"], &OnPurpose::default());
    }
}

/// Backups that end on their way: by Ctrl-C when the first part is sent, and by a kill when the manifest is.
fn ended_on_the_way(place: &Place, proxy: &TcpProxy, traffic: &Arc<Mutex<Vec<u8>>>) {
    for (signal, object) in [(Signal::INT, "/parts/"), (Signal::KILL, ".manifest.json")] {
        place.source.psql(DATABASE, "UPDATE last_files SET success_rate = random()");
        let (tell, told) = mpsc::channel();
        let traffic = Arc::clone(traffic);
        proxy.on_upstream(move |chunk| {
            traffic.lock().unwrap().extend(chunk);
            if chunk.starts_with(b"PUT ") && memchr::memmem::find(chunk, object.as_bytes()).is_some() {
                let _ = tell.send(());
                std::thread::sleep(Duration::from_millis(300));
            }
            Chunk::Pass
        });
        let output = place.run(place.workspace.run(&["backup", "-v", "-v"]), "a backup that is ended", |running| {
            told.recv_timeout(SOON).unwrap();
            running.signal(signal);
        });
        assert!(output.code == Some(130) || output.signal == Some(9), "{}", output.text());
    }
}

/// With every secret in the environment, which children must not inherit. Its own environment is what the test made it.
fn secrets_by_environment(place: &Place, s3: &S3Place) {
    let mut workspace = Workspace::s3(s3);
    workspace.table = place.workspace.table.clone();
    workspace.table["source"][0].as_table_mut().unwrap().remove("password_file");
    let repository = workspace.table["repository"].as_table_mut().unwrap();
    let encryption = repository["encryption"].as_table_mut().unwrap();
    encryption.retain(|key, _| !key.ends_with("_file"));
    repository["s3"].as_table_mut().unwrap().retain(|key, _| !key.ends_with("_file"));
    let identity = |n: usize| fs::read_to_string(&place.identities[n]).unwrap();
    for arguments in [&["backup"][..], &["verify", "--level", "content", "--json"], &["doctor", "-v", "-v"]] {
        let run = workspace.run(arguments).env("ALTLAS_BACKUP_DATABASE_PASSWORD", PASSWORDS[0].1);
        let run = run.env("AWS_ACCESS_KEY_ID", &s3.access_key_id).env("AWS_SECRET_ACCESS_KEY", &s3.secret_access_key);
        let run = run.env("ALTLAS_BACKUP_CATALOG_IDENTITY", identity(2)).env("ALTLAS_BACKUP_IDENTITY", identity(0));
        let output = run.deadline(SOON).ok();
        place.saw(format!("by environment: {arguments:?}"), output.text(), &OnPurpose::default());
    }
}

#[test]
fn nothing_tells_what_a_database_holds() {
    let s3 = BlockingS3::start(S3Kind::SeaweedFs).unwrap();
    let on_s3 = s3.place("backups", "prefix");
    let (proxy, traffic) = (TcpProxy::start(s3.address()), Arc::new(Mutex::new(Vec::new())));
    let recorded = Arc::clone(&traffic);
    proxy.on_upstream(move |chunk| {
        recorded.lock().unwrap().extend(chunk);
        Chunk::Pass
    });
    let through = S3Place { endpoint: format!("http://127.0.0.1:{}", proxy.port()), ..on_s3.clone() };
    // Each way on a thread of its own, to be done in time.
    let (folder, seaweed) = std::thread::scope(|scope| {
        let seaweed = scope.spawn(|| {
            let (source, workspace) = (Arc::new(filled(Major::V18)), Workspace::s3(&through));
            let place = Place::new("18 to S3", source, server(Major::V18), workspace).encrypted();
            place.tour(&WAYS);
            ended_on_the_way(&place, &proxy, &traffic);
            secrets_by_environment(&place, &through);
            place
        });
        let source = Arc::new(filled(Major::V15));
        let place = Place::new("15 to a folder", source, server(Major::V15), Workspace::folder()).encrypted();
        std::thread::scope(|scope| {
            scope.spawn(|| place.no_store());
            place.tour(&WAYS);
            place.failures();
        });
        (place, seaweed.join().unwrap())
    });

    let mut words = needles(&folder.source);
    let of_database: BTreeSet<String> = words.iter().map(|needle| needle.shown.clone()).collect();
    words.extend([&folder.target, &seaweed.source, &seaweed.target].into_iter().flat_map(hashes));
    words.extend(PASSWORDS.map(|(what, password)| Needle::new(Class::Secret, what, password)));
    words.push(Needle::new(Class::Secret, "the superuser's password", folder.source.password()));
    words.push(Needle::new(Class::Secret, "the fixture's password", "altlas-fixture"));
    words.push(Needle::new(Class::Secret, "a session token", SESSION_TOKEN));
    words.push(Needle::new(Class::Secret, "the access key's secret", &on_s3.secret_access_key));
    words.push(Needle::new(Class::Secret, ACCESS_KEY_ID, &on_s3.access_key_id));
    words.extend(BROKEN.iter().flat_map(|(_, sql)| {
        let at = sql.find("Unconfessed").unwrap();
        let value = sql[at..].split('\'').next().unwrap();
        [Needle::new(Class::Value, value, value)]
    }));
    words.extend(folder.identity_needles());
    words.extend(seaweed.identity_needles());
    words.extend(folder.look(files(&folder.workspace.repository_folder())));
    words.extend(seaweed.look(objects(&s3, &on_s3)));
    // The id of the key is in every signed request, by S3's protocol.
    let signed = OnPurpose { classes: &[], words: vec![ACCESS_KEY_ID.to_owned()] };
    seaweed.saw("requests".into(), std::mem::take(&mut *traffic.lock().unwrap()), &signed);

    let search = Search::new(words);
    let mut leaks = Vec::new();
    for place in [&folder, &seaweed] {
        let evidence = place.evidence.lock().unwrap();
        let count = |word: &str| evidence.iter().filter(|one| one.at.contains(word)).count();
        let bytes: usize = evidence.iter().map(|one| one.bytes.len()).sum();
        println!("{}: {} words in {} things, {bytes} bytes", place.label, search.needles.len(), evidence.len());
        for program in ["child pg_dump.", "child pg_dumpall.", "child psql.", "object ", ".manifest.json.zst.age"] {
            assert!(count(program) > 0, "{}: no {program}", place.label);
        }
        let own = evidence.iter().filter(|one| one.at.ends_with("environment") && one.bytes.ends_with(b"/tmp\0"));
        assert!(own.count() > 20, "{}: the program's own environment was not seen", place.label);
        leaks.extend(evidence.iter().flat_map(|one| search.leaks(one)));
    }
    assert!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks.join("\n"));
    a_planted_secret_is_found(&search, &folder.evidence.into_inner().unwrap());
    in_clear_everything_is_found(folder.source, &search, &of_database);
}

/// Whatever a thing may show on purpose, a secret in it is found.
fn a_planted_secret_is_found(search: &Search, evidence: &[Evidence]) {
    for Evidence { at, bytes, on_purpose } in evidence {
        let (before, after) = bytes.split_at(bytes.len() / 2);
        let planted = [before, PASSWORDS[0].1.to_uppercase().as_bytes(), after].concat();
        let planted = Evidence { at: at.clone(), bytes: planted, on_purpose: on_purpose.clone() };
        assert!(!search.leaks(&planted).is_empty(), "{at}: what was planted is not found");
    }
}

/// The same search of the same database without encryption: it finds each word, or it would not have found a leak either.
fn in_clear_everything_is_found(source: Arc<Postgres>, search: &Search, of_database: &BTreeSet<String>) {
    let mut place = Place::new("in clear", source, server(Major::V15), Workspace::folder());
    // As the words are spelt.
    place.workspace.set("source.0.copy_format", "text");
    place.tour(&WAYS[3..]);
    let keys = Search::new(place.look(files(&place.workspace.repository_folder())));
    let evidence = place.evidence.lock().unwrap();
    let found_in = |search: &Search, word: &str| {
        let there = evidence.iter().filter(|one| one.at.contains(word));
        there.flat_map(|one| search.find(&one.bytes)).map(|found| found.needle).collect::<BTreeSet<_>>()
    };
    let (parts, manifests) = (found_in(search, "/parts/"), found_in(search, ".manifest.json.zst"));
    let missed = search.needles.iter().enumerate().filter(|(index, _)| !parts.contains(index));
    let missed: Vec<&String> =
        missed.map(|(_, needle)| &needle.shown).filter(|shown| of_database.contains(*shown)).collect();
    assert!(missed.is_empty(), "not found in the parts: {missed:?}");
    let has = |found: &BTreeSet<usize>, class: Class| {
        found.iter().filter(|index| search.needles[**index].class == class).count()
    };
    assert!(has(&parts, Class::Secret) > 0, "hashes of passwords");
    assert!(has(&manifests, Class::Name) > 5 && has(&manifests, Class::Column) > 5, "{manifests:?}");
    assert_eq!(found_in(&keys, "/keys.json").len(), 3);
    // What is said is as silent as with encryption: the program cannot know who reads its logs.
    let said = evidence.iter().filter(|one| !one.at.contains("object "));
    let leaks: Vec<String> = said.flat_map(|one| search.leaks(one)).collect();
    assert!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks.join("\n"));
}
