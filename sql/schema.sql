-- The schema and the ledger of what was applied to it. Everything else is in migrations/ (tables) and functions/.
create schema if not exists mq;

comment on schema mq is 'mq: a message and job queue in SQL. Owned by mqctl; do not add objects of your own.';

create table if not exists mq.migration (
    version    int not null,
    slug       text not null,
    sha256     text not null,
    mq_version text not null,
    applied_at timestamptz not null default clock_timestamp(),
    constraint migration_pkey primary key (version)
);

comment on table mq.migration is 'One row for every migration that was applied, with the hash of the file as it was.';
