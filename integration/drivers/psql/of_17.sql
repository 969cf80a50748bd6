-- What psql 17 and later have beyond of_16.sql.
create sequence matrix_rows;
\t on
select 'row' from generate_series(1, 4 - nextval('matrix_rows')) \watch m=2 i=0.01
\t off
drop sequence matrix_rows;
select id, word from matrix_psql where id < 20 order by id limit 3 \g | wc -l
\set FETCH_COUNT 2
select id from matrix_psql where id < 20 order by id limit 5 \g | wc -l
with one as (select 1 as n) select n from one;
insert into matrix_psql select n from generate_series(500, 504) n returning id;
\unset FETCH_COUNT
delete from matrix_psql where id >= 500;
