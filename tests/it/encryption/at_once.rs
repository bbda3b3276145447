//! Line 7: encrypted backups of one database at the same time.

use std::collections::BTreeMap;

use super::people::{Given, Site, machine, restore, sound};
use crate::support::{
    binary::Run,
    postgres::{Major, Postgres},
    proxy::HttpProxy,
    s3::{BlockingS3, S3Kind},
    workspace::Workspace,
};

#[test]
fn two_backups_at_once_are_both_sound_and_write_no_key_twice() {
    let site = Site::start(2000);
    let seaweed = BlockingS3::start(S3Kind::SeaweedFs).unwrap();
    let proxy = HttpProxy::start(seaweed.address());
    let mut on_s3 = Workspace::s3(&seaweed.place("backups", "encrypted")).postgres(&site.source, &["altlas"]);
    on_s3.set("repository.s3.endpoint", proxy.endpoint());
    let folder = Workspace::folder().postgres(&site.source, &["altlas"]);
    let recipients = [&site.operator, &site.escrow];
    let target = Postgres::start(Major::V15);
    for (name, place) in [("folder", &folder), ("seaweedfs", &on_s3)] {
        let maker = machine(place, Given { recipients: &recipients, catalog: &[&site.catalog], ..Given::default() });
        let reader = site.reader(place);
        maker.run(&["init"]).ok();
        // Twice: into no epoch, where each run may begin one, and into one that is there.
        for _ in 0..2 {
            let config = maker.config();
            let running: Vec<_> = (0..2).map(|_| Run::new(&["--json", "backup"]).config(&config).spawn()).collect();
            for run in running {
                let report = run.wait().assert_code(0).json();
                assert_eq!(report["state"], "complete");
                sound(&reader, report["backup"].as_str().unwrap(), "content");
            }
            site.source.psql("altlas", "UPDATE public.tags SET description = coalesce(description, '') || 'x'");
        }
        restore(&reader, "latest", &target, name).ok();
    }
    let mut written: BTreeMap<String, u64> = BTreeMap::new();
    for request in proxy.requests().into_iter().filter(|request| request.method == "PUT") {
        let key = request.path.split('?').next().unwrap().to_owned();
        assert!(!key.ends_with(".zst"), "{key} is in clear");
        *written.entry(key).or_default() += 1;
    }
    assert!(written.keys().filter(|key| key.contains("/parts/")).count() > 5, "{written:?}");
    let twice: Vec<_> = written.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
}
