#!/bin/sh
# Makes a database for each user of PostgreSQL, which the others cannot enter. PostgreSQL's image
# runs it once, when the volume is empty.
set -eu

create() {
    psql --set ON_ERROR_STOP=1 --set name="$1" --set password="$2" --quiet \
        --username "$POSTGRES_USER" --dbname postgres <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
}

# These are there from the beginning, and open to everybody.
psql --set ON_ERROR_STOP=1 --quiet --username "$POSTGRES_USER" --dbname postgres <<'SQL'
REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC;
SQL

create dagster "$DAGSTER_POSTGRES_PASSWORD"
create mlflow "$MLFLOW_POSTGRES_PASSWORD"
create captures "$CAPTURES_POSTGRES_PASSWORD"
create history "$HISTORY_POSTGRES_PASSWORD"

# The endpoint adds to the captures; the service `captures` gives it the rights, once there are tables.
psql --set ON_ERROR_STOP=1 --set password="$ENDPOINT_POSTGRES_PASSWORD" --quiet \
    --username "$POSTGRES_USER" --dbname captures <<'SQL'
CREATE ROLE endpoint LOGIN PASSWORD :'password';
GRANT CONNECT ON DATABASE captures TO endpoint;
SQL

# Grafana reads the tables that the platform will make in its history, and writes nothing.
psql --set ON_ERROR_STOP=1 --set password="$GRAFANA_POSTGRES_PASSWORD" --quiet \
    --username "$POSTGRES_USER" --dbname history <<'SQL'
CREATE ROLE grafana LOGIN PASSWORD :'password';
GRANT CONNECT ON DATABASE history TO grafana;
ALTER DEFAULT PRIVILEGES FOR ROLE history IN SCHEMA public GRANT SELECT ON TABLES TO grafana;
SQL
