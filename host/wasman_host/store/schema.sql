-- Schema 3 of a wasman store. It is cut at its semicolons, so no comment has one. `pragma user_version` holds the number,
-- `pragma application_id` says whose file it is.
-- A changed table gets a new number, and a migration beside this file, as schema_2.sql is for stores of schema 2. This text
-- is what a new store is made of.
-- All times are nanoseconds since 1970. Everything in a blob column is sealed by wasman_host.seal,
-- each log entry by itself.

-- Each instance, as far as it is searched by or changes at every step. A rowid table of short rows: instances that were
-- started together lie together, so that a group commit writes few pages, and a step touches none of the indexes.
create table instance (
    number     integer primary key,
    tenant     text    not null,
    id         text    not null,
    run        text    not null,
    run_number integer not null,
    version    integer not null,
    nonce      text    not null,
    mail       integer not null default 0 check (mail >= 0),
    status     text    not null,
    workflow   text    not null,
    module     text    not null,
    queue      text    not null,
    owner      text,
    wake       integer,
    expires    integer,
    takeovers  integer not null,
    size       integer not null,
    parent     text,
    created    integer not null,
    closed     integer,
    attributes text    not null,
    tail       blob    not null,
    fresh      blob    not null default x'', -- what the log has not got yet of a run that goes on alone
    unique (tenant, id)
) strict;

-- What is rewritten seldom: all else that is known of the instance. By the number of its row above.
create table record (
    instance integer primary key,
    data     blob    not null
) strict;

-- What a claim looks for. The conditions are repeated word by word in the queries, else SQLite does not use them.
create index instance_due on instance (queue, wake)
    where owner is null and wake is not null and workflow <> '' and status in ('running', 'waiting', 'publishing');
create index instance_mailed on instance (queue, created)
    where owner is null and mail > 0 and workflow <> '' and status in ('running', 'waiting', 'publishing', 'blocked');
create index instance_expires on instance (queue, expires)
    where owner is null and expires is not null and workflow <> ''
        and status in ('running', 'waiting', 'publishing', 'blocked');
create index instance_owner on instance (owner) where owner is not null;
create index instance_owner_mailed on instance (owner) where owner is not null and mail > 0;

-- What a listing looks for.
create index instance_created on instance (tenant, created desc, id) where workflow <> '';
create index instance_status on instance (tenant, status, created desc, id) where workflow <> '';
create index instance_workflow on instance (tenant, workflow, created desc, id) where workflow <> '';
create index instance_parent on instance (tenant, parent) where parent is not null;

-- Every run that an id ever had, until the instance is deleted. Rows here without their instance are damage. Its
-- number, which is never used again, stands for it in what follows: rows of one group then lie together in the index
-- (by the random run ids themselves, a group of 50 writes 118 pages, so 15 to 40).
create table run (
    number integer primary key autoincrement,
    run    text    not null unique,
    tenant text    not null,
    id     text    not null
) strict;
create index run_instance on run (tenant, id);

-- Entries n to last of a run, in the form of wasman_host.store.sqlite_log: one where runs take their steps together, several
-- where one goes on alone. A rowid table, so that what a group appends goes to the end, however large the entries are.
create table log (
    number  integer primary key,
    run     integer not null,
    n       integer not null,
    last    integer not null,
    entries blob    not null,
    unique (run, last)
) strict;

create table blob (
    run  integer not null,
    name text    not null,
    data blob    not null,
    primary key (run, name)
) strict;

-- Mail stays for an hour after it was consumed, to refuse a repeated send. `number` is the order of arrival.
create table mail (
    number      integer primary key,
    tenant      text    not null,
    id          text    not null,
    message     text    not null,
    kind        text    not null,
    body        blob    not null,
    sent        integer not null,
    consumed_at integer,
    unique (tenant, id, message)
) strict;
create index mail_consumed on mail (consumed_at) where consumed_at is not null;

create table attribute (
    tenant text not null,
    name   text not null,
    value  text not null,
    id     text not null,
    primary key (tenant, name, value, id)
) strict, without rowid;

create table worker (
    id    text    primary key,
    lease integer not null,
    info  text    not null
) strict, without rowid;

create table module (
    sha256 text primary key,
    data   blob not null
) strict;

create table image (
    name text primary key,
    data blob not null
) strict;
