# Makes this guest a machine of its own: sets the identity that the host sends as one line, answers, and waits for the
# next line, which comes when a snapshot of this guest wakes as another machine. It is started before the template is
# frozen and waits there, so that a fork starts no program for this; under emulation each program costs 40 ms. perl-base
# is in every Debian, and can make system calls.
use strict;
use warnings;
use Fcntl;

my ($settime, $pidfd) = (227, 434);    # clock_settime and pidfd_open on x86_64

sub put {
    my ($path, $text) = @_;
    sysopen(my $file, $path, O_WRONLY | O_CREAT | O_TRUNC, 0644) or die "$path: $!\n";
    defined(syswrite($file, $text)) or die "$path: $!\n";
}

# Kills a program and waits for its end: data that the new host sends before its port is closed is lost.
sub finish {
    my ($pid) = @_;
    my $fd = syscall $pidfd, $pid, 0;
    return if $fd < 0;
    open my $end, '<&=', $fd or die "pidfd: $!\n";
    kill 'KILL', $pid;
    my $ready = '';
    vec($ready, $fd, 1) = 1;
    select $ready, undef, undef, 5;
}

sub become {
    my ($time, $name, $id, $again, $pids, $random, $key) = split /\t/, shift;
    my $timespec = pack 'q q', int($time), int(($time - int($time)) * 1e9);
    syscall($settime, 0, $timespec) == 0 or die "the clock: $!\n";
    return unless defined $name;
    put('/dev/urandom', pack('H*', $random));
    put('/run/hiveyard/authorized_keys', "$key\n");
    put('/run/hiveyard/pids', $pids);
    put('/proc/sys/kernel/hostname', $name);
    put('/etc/hostname', "$name\n");
    put('/etc/hosts', "127.0.0.1\tlocalhost\n127.0.1.1\t$name\n");
    put('/etc/machine-id', "$id\n");
    return unless $again;
    # The other ends of existing connections belong to another machine. ssh is spared: the host may use it already.
    if (open my $file, '<', '/run/hiveyard/commands.pid') { finish(0 + <$file>) }
    my $pid = fork;
    die "fork: $!\n" unless defined $pid;
    return if $pid;
    open STDOUT, '>', '/dev/null';
    exec qw(ss -K -t -H not dst 127.0.0.0/8 and not sport = :22) or die "ss: $!\n";
}

sysopen(my $port, '/dev/virtio-ports/hiveyard.identity', O_RDWR) or die "the port: $!\n";
# The kernel signals when a host connects, so that no frequent polling is needed.
$SIG{IO} = sub { };
$SIG{CHLD} = 'IGNORE';
fcntl($port, F_SETOWN, 0 + $$) or die "F_SETOWN: $!\n";
fcntl($port, F_SETFL, O_RDWR | O_ASYNC) or die "O_ASYNC: $!\n";
put('/run/hiveyard/waiting', '');
while (1) {
    my $line = '';
    until ($line =~ /\n/) {
        my $count = sysread $port, $line, 4096, length $line;
        # Nothing can be read while the host is not connected.
        select undef, undef, undef, 0.5 if defined $count && !$count;
    }
    chomp $line;
    eval { become($line) };
    syswrite $port, $@ ? "no: $@" : "yes\n";
}
