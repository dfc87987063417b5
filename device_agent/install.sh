#!/bin/sh
# Installs the agent into an environment of its own, as a service. Debian refuses packages into the system's Python.
#
#   sudo device_agent/install.sh --runtime litert
#
# Run it again to upgrade: configuration and state stay, and the service is started again.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
prefix=/opt/edgeship-agent
config=/etc/edgeship/agent.toml
state=/var/lib/edgeship
user=edgeship
runtime=
service=yes
python=python3

usage() {
    cat <<END
usage: install.sh --runtime litert|onnxruntime|openvino|tflite [options]
  --prefix DIR    of the environment (default: $prefix)
  --config FILE   agent.toml (default: $config)
  --state DIR     everything that the agent remembers (default: $state)
  --user NAME     who runs it; made where it is not there (default: $user)
  --python FILE   Python 3.10 or newer (default: $python)
  --no-service    install the program only
END
}

fail() {
    printf '✖ %s\n' "$1" >&2
    [ $# -lt 2 ] || printf 'next: %s\n' "$2" >&2
    exit "${3:-1}"
}

while [ $# -gt 0 ]; do
    case $1 in
        --runtime | --prefix | --config | --state | --user | --python)
            [ $# -ge 2 ] || fail "$1 needs a value" "install.sh --help" 2
            eval "${1#--}=\$2"
            shift 2
            ;;
        --no-service) service=no; shift ;;
        -h | --help) usage; exit 0 ;;
        *) fail "unknown option $1" "install.sh --help" 2 ;;
    esac
done
case $runtime in
    litert | onnxruntime | openvino | tflite) ;;
    *) fail "--runtime: expected litert, onnxruntime, openvino or tflite, got '$runtime'" "install.sh --help" 2 ;;
esac
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
    fail "$python is not Python 3.10 or newer" "apt-get install python3, or --python FILE" 2
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python cannot make environments" "apt-get install python3-venv" 2
if [ "$service" = yes ]; then
    [ "$(id -u)" = 0 ] || fail "a service is installed by root" "sudo $0 --runtime $runtime, or --no-service" 2
    command -v systemctl >/dev/null || fail "there is no systemd here" "--no-service, and start it your way" 2
fi

# each environment in a folder of its own, under a link that is swapped in one rename: a device that loses power in between
# has the old one or the new one
[ ! -e "$prefix" ] || [ -L "$prefix" ] || fail "$prefix is no link of this installer" "--prefix DIR" 2
new="$prefix.$(date +%Y%m%d%H%M%S).$$"
trap 'rm -rf "$new" "$new.link"' EXIT
echo "installing into $prefix"
"$python" -m venv "$new"
"$new/bin/python" -m pip install --quiet --disable-pip-version-check "$here[$runtime]"
"$new/bin/edgeship-agent" --help >/dev/null
ln -s "$(basename "$new")" "$new.link"
mv -T "$new.link" "$prefix"
trap - EXIT
for old in "$prefix".[0-9]*; do
    [ "$old" = "$new" ] || rm -rf "$old"
done
if [ "$service" = no ]; then
    printf '✔ installed\nnext: %s\n' "$prefix/bin/edgeship-agent enroll URL --token TOKEN --target TARGET"
    exit 0
fi

id "$user" >/dev/null 2>&1 || useradd --system --no-create-home --shell /usr/sbin/nologin "$user"
install -d -m 755 "$(dirname "$config")"
install -d -o "$user" -m 700 "$state"
if [ ! -e "$config" ]; then
    printf '✔ installed\nnext: %s\n' "enrol this device, then run this again:
  sudo install -d -o $user $(dirname "$config")
  sudo -u $user $prefix/bin/edgeship-agent enroll URL --token TOKEN --target TARGET --state-dir $state --config $config"
    exit 0
fi
unit=/etc/systemd/system/edgeship-agent.service
# by the link, so that the unit names what the next upgrade swaps too
"$prefix/bin/python" -m edgeship_agent.cli unit --config "$config" --user "$user" >"$unit.new" 2>/dev/null
mv "$unit.new" "$unit"
systemctl daemon-reload
systemctl enable --quiet edgeship-agent
systemctl restart edgeship-agent
printf '✔ installed and running\nnext: %s\n' "sudo -u $user $prefix/bin/edgeship-agent doctor --config $config"
