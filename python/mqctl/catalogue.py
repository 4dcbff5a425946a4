"""What is in schema ``mq``, as one query over the catalogue: the ground of the fingerprint and of ``mqctl check``.

The objects that mq generates for a queue (``log_<q>_<s>``, ``_take_<q>_<s>``, …; their names end in numbers) are left out, so
the result is the same whatever queues exist. Owners are left out too, and what the owner grants himself: neither is
ours to say, and PostgreSQL 17 added a privilege to the latter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

ROLES = ("mq_producer", "mq_consumer", "mq_admin")

GENERATED = "_[0-9]+(_[0-9]+)?$"
"""Regular expression: the names of what belongs to one queue."""

# Relations that other roles may be granted by hand (where CREATEROLE is refused, say): the target of COPY.
_GRANTABLE = ("inbox",)

STRUCTURE = ("relation", "column", "constraint", "index", "trigger", "type")
"""Kinds that only a migration may change: an upgrade does not put them right, so it refuses to pass over them."""

STRANGER = "foreign grant"
"""Kind of a privilege on a private relation that somebody was given by hand; never recorded as installed."""


@dataclass(frozen=True, slots=True, order=True)
class Item:
    """One thing in the schema: what it is, its name, and all that is compared about it, as text."""

    kind: str
    name: str
    definition: str


def fingerprint(items: Iterable[Item]) -> str:
    """sha256 over the items, in hex."""
    total = sha256()
    for item in sorted(items):
        total.update(f"{item.kind}\n{item.name}\n{item.definition}\n\n".encode())
    return total.hexdigest()


def _grants(acl: str, default: str, owner: str, who: str) -> str:
    """SQL text: the privileges in ``acl`` of the grantees that ``who`` lets through, owner aside, in a fixed order."""
    return f"""(
        select string_agg(g.line, '; ' order by g.line collate "C")
        from (
            select format('%s: %s', r.name, string_agg(lower(x.privilege_type)
                          || case when x.is_grantable then '*' else '' end, ', '
                          order by x.privilege_type collate "C")) as line
            from aclexplode(coalesce({acl}, acldefault({default}, {owner}))) as x
            cross join lateral (
                select case x.grantee when 0 then 'public' else pg_get_userbyid(x.grantee) end::text as name
            ) as r
            where x.grantee <> {owner} and {who}
            group by r.name
        ) as g
    )"""


_ROLE_LIST = ", ".join(f"'{role}'" for role in ROLES)
_OURS = f"r.name in ('public', {_ROLE_LIST})"
_NOT_OURS = f"r.name not in ('public', {_ROLE_LIST})"
_GRANTABLE_LIST = ", ".join(f"'{name}'" for name in _GRANTABLE)
_RELATION_KIND = "case rel.relkind when 'S' then 's' else 'r' end::\"char\""

# Run it with search_path = pg_catalog, pg_temp, so that every name of ours comes out qualified.
QUERY = f"""
with space as (
    select n.oid, n.nspacl, n.nspowner from pg_namespace as n where n.nspname = 'mq'
), rel as (
    select c.oid, c.relname::text as name, c.relkind, c.relpersistence, c.relrowsecurity, c.relacl, c.relowner, c.reltype
    from pg_class as c
    join space on space.oid = c.relnamespace
    where c.relkind in ('r', 'p', 'v', 'm', 'f', 'c', 'S') and c.relname !~ '{GENERATED}'
      and not exists (select from pg_depend as d      -- the sequence of an identity column of such a table
                      join pg_class as o on o.oid = d.refobjid
                      where d.classid = 'pg_class'::regclass and d.objid = c.oid
                        and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i')
                        and o.relname ~ '{GENERATED}')
), routine as (
    select p.*, format('%s(%s)', p.proname, pg_get_function_identity_arguments(p.oid)) as signature
    from pg_proc as p
    join space on space.oid = p.pronamespace
    where p.proname !~ '{GENERATED}'
), item (kind, name, definition) as (
    select 'schema', 'mq', format('comment %s', md5(obj_description(space.oid, 'pg_namespace')))
    from space
    union all
    select 'relation', rel.name, format('%s, persistence %s, row security %s, comment %s%s',
        case rel.relkind when 'r' then 'table' when 'p' then 'partitioned table' when 'v' then 'view'
            when 'm' then 'materialized view' when 'f' then 'foreign table' when 'c' then 'composite type'
            else 'sequence' end,
        rel.relpersistence, rel.relrowsecurity, md5(obj_description(rel.oid, 'pg_class')),
        case when rel.relkind in ('v', 'm') then ', query ' || md5(pg_get_viewdef(rel.oid)) end)
    from rel
    union all
    select 'column', format('%s.%s', rel.name, a.attname), format('%s: %s%s%s%s%s, comment %s',
        row_number() over (partition by rel.oid order by a.attnum),
        format_type(a.atttypid, a.atttypmod),
        case when a.attnotnull then ' not null' end,
        case a.attidentity when 'a' then ' identity always' when 'd' then ' identity by default' end,
        case when d.oid is not null then format(' %s %s',
            case a.attgenerated when '' then 'default' else 'generated' end, pg_get_expr(d.adbin, d.adrelid)) end,
        (select format(' collate %s', l.collname) from pg_collation as l
         where l.oid = a.attcollation and l.collname <> 'default'),
        md5(col_description(rel.oid, a.attnum)))
    from rel
    join pg_attribute as a on a.attrelid = rel.oid and a.attnum > 0 and not a.attisdropped and rel.relkind <> 'S'
    left join pg_attrdef as d on d.adrelid = a.attrelid and d.adnum = a.attnum
    union all
    select 'constraint', format('%s.%s', coalesce(rel.name, c.contypid::regtype::text), c.conname),
        pg_get_constraintdef(c.oid)
    from pg_constraint as c
    join space on space.oid = c.connamespace
    left join rel on rel.oid = c.conrelid
    where c.contype not in ('n', 't') and (rel.oid is not null or c.contypid <> 0)
    union all
    select 'index', format('%s.%s', rel.name, x.relname),
        pg_get_indexdef(i.indexrelid) || case when i.indisvalid then '' else ' (invalid)' end
    from rel
    join pg_index as i on i.indrelid = rel.oid
    join pg_class as x on x.oid = i.indexrelid
    union all
    select 'trigger', format('%s.%s', rel.name, t.tgname),
        format('%s, enabled %s', pg_get_triggerdef(t.oid), t.tgenabled)
    from rel
    join pg_trigger as t on t.tgrelid = rel.oid and not t.tgisinternal
    union all
    select 'type', t.typname::text, case t.typtype
        when 'e' then (select string_agg(e.enumlabel, ', ' order by e.enumsortorder)
                       from pg_enum as e where e.enumtypid = t.oid)
        else format('%s %s%s', t.typtype, format_type(t.typbasetype, t.typtypmod),
                    case when t.typnotnull then ' not null' end) end
    from pg_type as t
    join space on space.oid = t.typnamespace
    where t.typtype in ('e', 'd', 'r') and t.typname !~ '{GENERATED}'
    union all
    select 'function', routine.signature, format('%s, comment %s',
        case when routine.prokind in ('f', 'p')
            then replace(pg_get_functiondef(routine.oid), routine.prosrc, 'body ' || md5(routine.prosrc))
            else format('kind %s', routine.prokind) end,
        md5(obj_description(routine.oid, 'pg_proc')))
    from routine
    union all
    select 'grant', 'schema mq', {_grants("space.nspacl", "'n'", "space.nspowner", _OURS)}
    from space
    union all
    select 'grant', format('function %s', routine.signature),
        {_grants("routine.proacl", "'f'", "routine.proowner", _OURS)}
    from routine
    union all
    select 'grant', format('relation %s', rel.name), {_grants("rel.relacl", _RELATION_KIND, "rel.relowner", _OURS)}
    from rel
    where rel.relkind <> 'c'
    union all
    select 'grant', format('column %s.%s', rel.name, a.attname),
        {_grants("a.attacl", "'c'", "rel.relowner", _OURS)}
    from rel
    join pg_attribute as a on a.attrelid = rel.oid and a.attacl is not null
    union all
    select 'grant', format('type %s', t.typname), {_grants("t.typacl", "'T'", "t.typowner", _OURS)}
    from pg_type as t
    join space on space.oid = t.typnamespace
    left join rel on rel.reltype = t.oid
    where t.typname !~ '{GENERATED}' and (t.typtype in ('e', 'd', 'r') or rel.relkind = 'c')
    union all
    select '{STRANGER}', format('relation %s', rel.name),
        {_grants("rel.relacl", _RELATION_KIND, "rel.relowner", _NOT_OURS)}
    from rel
    where rel.relkind <> 'c' and rel.name not in ({_GRANTABLE_LIST})
    union all
    select 'role', r.rolname::text, format('can log in: %s, superuser: %s, member of: %s', r.rolcanlogin, r.rolsuper,
        (select string_agg(distinct g.rolname::text, ', ' order by g.rolname::text)
         from pg_auth_members as m
         join pg_roles as g on g.oid = m.roleid
         where m.member = r.oid and g.rolname in ({_ROLE_LIST})))
    from pg_roles as r
    where r.rolname in ({_ROLE_LIST}) and exists (select from space)
)
select item.kind::text as kind, item.name::text as name, coalesce(item.definition, '')::text as definition
from item
where item.definition is not null or item.kind not in ('grant', '{STRANGER}')
"""
