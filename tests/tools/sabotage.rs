//! Spoils a repository, to show that a verification finds it. Built by `--features sabotage` only; whoever has it and every key can do no
//! more with it than without.
//!
//! ```text
//! sabotage flip  FOLDER IDENTITY BACKUP SOURCE ARTIFACT          one bit of the artifact's first part
//! sabotage graft FOLDER IDENTITY BACKUP SOURCE ARTIFACT DONOR    the artifact as another backup has it, all digests made good
//! ```
//!
//! IDENTITY is an identity file of a recipient, or `-` for a repository in clear.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test tool: whatever it does not expect ends it")]
#![allow(missing_docs, unreachable_pub)]

#[expect(dead_code, reason = "the tests use more of it")]
mod forging;

use std::{fs, path::Path};

use altlas_backup::crypt::Identities;

use self::forging::Forging;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let opened = |folder: &str, identity: &str| {
        let identities = match identity {
            "-" => None,
            file => Some(Identities::parse(&fs::read_to_string(file).unwrap()).unwrap()),
        };
        Forging::new(Path::new(folder), identities)
    };
    match words[..] {
        ["flip", folder, identity, backup, source, artifact] => {
            let forging = opened(folder, identity);
            let file = forging.part_file(&forging.manifest(backup, source), artifact, 0);
            let mut bytes = fs::read(&file).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(&file, bytes).unwrap();
            println!("flipped a bit of {}", file.file_name().unwrap().to_string_lossy());
        }
        ["graft", folder, identity, backup, source, artifact, donor] => {
            opened(folder, identity).graft(backup, donor, source, artifact);
            println!("{artifact} of backup {backup} has the bytes of backup {donor}, and every digest is good");
        }
        _ => {
            eprintln!(
                "use: sabotage flip FOLDER IDENTITY BACKUP SOURCE ARTIFACT | graft FOLDER IDENTITY BACKUP SOURCE ARTIFACT DONOR"
            );
            std::process::exit(2);
        }
    }
}
