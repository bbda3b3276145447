//! The image, as far as it can be looked at without building it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::rules::USER;
use crate::support::{temp_folder, tools};

/// What the Dockerfile says of the image that pods run.
pub(super) struct Image {
    /// The `ENV` of the image.
    pub(super) environment: Vec<(String, String)>,
    /// The line of its user in `/etc/passwd`.
    pub(super) passwd: String,
    /// Where our program is.
    pub(super) program: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The Dockerfile's instructions: lines that end with `\` are joined, comments are left out.
fn instructions() -> Vec<String> {
    let text = fs::read_to_string(root().join("Dockerfile")).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let joined = lines.join("\n").replace("\\\n", " ");
    joined
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|line| !line.is_empty())
        .collect()
}

/// Those of this name.
fn of(name: &str) -> Vec<String> {
    instructions().iter().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).map(str::to_owned).collect()
}

impl Image {
    pub(super) fn read() -> Self {
        let pairs = of("ENV")
            .iter()
            .flat_map(|line| line.split(' ').map(str::to_owned).collect::<Vec<_>>())
            .collect::<Vec<_>>();
        let environment = pairs
            .iter()
            .map(|pair| pair.split_once('=').unwrap())
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let adding = of("RUN").into_iter().find(|line| line.contains("useradd ")).expect("the image has a user");
        let words: Vec<&str> = adding.split_once("useradd ").unwrap().1.split(' ').collect();
        let option =
            |name: &str| words[words.iter().position(|word| *word == name).unwrap_or_else(|| panic!("{name}")) + 1];
        let (uid, gid, home, shell) = (option("--uid"), option("--gid"), option("--home-dir"), option("--shell"));
        let name = words.last().unwrap();
        let program = of("COPY")
            .into_iter()
            .find_map(|line| Some(line.strip_prefix("--from=build ")?.split_once(' ')?.1.to_owned()));
        Self {
            environment: environment.collect(),
            passwd: format!("{name}:x:{uid}:{gid}::{home}:{shell}"),
            program: program.expect("the program is copied from the stage that builds it"),
        }
    }
}

#[test]
fn hadolint_has_nothing_to_say() {
    let output = Command::new(tools::hadolint()).arg(root().join("Dockerfile")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn the_image_is_what_the_manifests_take_it_for() {
    let image = Image::read();
    assert_eq!(of("USER"), [format!("{USER}:{USER}")]);
    assert!(image.passwd.split(':').skip(2).take(2).all(|id| id == USER.to_string()), "{}", image.passwd);
    assert_eq!(image.program, "/usr/local/bin/altlas-backup");
    assert_eq!(of("ENTRYPOINT"), ["[\"altlas-backup\"]"]);
    // Pinned, and not by a tag that moves every day.
    for base in of("ARG").iter().filter(|line| line.contains("_IMAGE=")) {
        let (_, tag) = base.rsplit_once(':').unwrap();
        assert!(tag.chars().filter(|c| *c == '.').count() >= 1 && !tag.contains("latest"), "{base}");
    }
    assert!(of("FROM").iter().all(|from| from.starts_with("${RUST_IMAGE}") || from.starts_with("${DEBIAN_IMAGE}")));
    // All that the tools of this version need, by the names that Debian has for it.
    let packages = of("RUN").into_iter().find(|line| line.contains("apt-get install")).unwrap();
    for package in [
        "age",
        "ca-certificates",
        "nats-server",
        "redis-server",
        "tzdata",
        "util-linux",
        "zstd",
        "postgresql-$major",
        "postgresql-client-$major",
    ] {
        assert!(packages.split([' ', '"', ';']).any(|word| word == package), "{package}");
    }
    assert!(of("ARG").contains(&"POSTGRES_MAJORS=15".to_owned()));
}

/// What is sent to the builder is what it copies, and that is enough: a package that cargo can read, with all that its sources include.
#[test]
fn what_the_image_is_built_from_is_there() {
    let copied: Vec<PathBuf> = of("COPY")
        .iter()
        .filter(|line| !line.starts_with("--from="))
        .flat_map(|line| {
            let mut words: Vec<PathBuf> = line.split(' ').map(PathBuf::from).collect();
            words.pop();
            words
        })
        .collect();
    let ignored = fs::read_to_string(root().join(".dockerignore")).unwrap();
    let mut sent: Vec<PathBuf> = ignored.lines().filter_map(|line| line.strip_prefix('!')).map(PathBuf::from).collect();
    assert!(ignored.lines().any(|line| line == "*"), "all else is left out");
    let mut sorted = copied.clone();
    sorted.sort();
    sent.sort();
    assert_eq!(sorted, sent);

    let folder = temp_folder();
    for path in &copied {
        let status = Command::new("cp").arg("-a").arg(root().join(path)).arg(folder.path()).status().unwrap();
        assert!(status.success(), "{} is there", path.display());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let metadata = Command::new(cargo)
        .args(["metadata", "--locked", "--offline", "--no-deps", "--format-version", "1"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    assert!(
        String::from_utf8_lossy(&metadata.stdout).contains("\"name\":\"altlas-backup\",\"src_path\""),
        "the program is in it"
    );
}
