//! The ALT_LAS fixture is what it says it is: the same on every server, and a function of its two parameters.

use crate::support::postgres::{Major, Postgres};

#[test]
fn the_same_on_15_and_18_and_different_for_another_seed() {
    let (old, new) = (Postgres::start(Major::V15), Postgres::start(Major::V18));
    old.create_altlas("altlas", 500, 7);
    new.create_altlas("other", 500, 7);
    old.create_altlas("seed", 500, 8);
    let digests = old.digests("altlas");
    assert_eq!(digests, new.digests("other"));
    assert_eq!(digests.len(), 7);
    assert_eq!(digests["public.last_files"].0, 500);

    let other = old.digests("seed");
    for table in ["last_files", "atlas_entries", "archives", "atlas_metadata", "tags", "analytics_daily"] {
        let table = format!("public.{table}");
        assert_eq!(digests[&table].0, other[&table].0, "{table}: rows");
        assert_ne!(digests[&table].1, other[&table].1, "{table}: content");
    }
}

#[test]
fn loads_at_every_small_size_too() {
    let server = Postgres::start(Major::V15);
    for rows in [0, 1, 3, 4, 9] {
        let name = format!("rows_{rows}");
        server.create_altlas(&name, rows, 1);
        assert_eq!(server.digests(&name)["public.last_files"].0, rows);
    }
}
