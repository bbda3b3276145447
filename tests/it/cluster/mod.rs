//! The cluster: the manifests in `k8s/` as kustomize renders them, read as a cluster would read them, and their commands run as
//! they stand there; and the image.
//!
//! There is no cluster here. What only one can show (that it schedules, mounts and routes as it says) is not shown.

mod flows;
mod image;
mod mutations;
mod objects;
mod pod;
mod rules;
mod runs;
mod settings;
