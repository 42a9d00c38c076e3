# What makes this guest a machine of its own: takes on the identity that the host sends as one line, answers, and
# waits for the next, which comes when a snapshot of this guest wakes as another machine. It is started before the
# template is frozen and waits there, so a fork runs no new program to become itself; under emulation each program
# costs 40 ms. perl-base is in every Debian, and can call the kernel.
use strict;
use warnings;
use Fcntl;

my ($settime, $pidfd) = (227, 434);    # clock_settime and pidfd_open on x86_64

sub put {
    my ($path, $text) = @_;
    sysopen(my $file, $path, O_WRONLY | O_CREAT | O_TRUNC, 0644) or die "$path: $!\n";
    defined(syswrite($file, $text)) or die "$path: $!\n";
}

# Ends a program and waits for that: when its port closes, what the new host has sent there by then is lost.
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
    # The other ends of what is connected are another machine's. ssh is how this one may be reached already.
    if (open my $file, '<', '/run/hiveyard/commands.pid') { finish(0 + <$file>) }
    my $pid = fork;
    die "fork: $!\n" unless defined $pid;
    return if $pid;
    open STDOUT, '>', '/dev/null';
    exec qw(ss -K -t -H not dst 127.0.0.0/8 and not sport = :22) or die "ss: $!\n";
}

sysopen(my $port, '/dev/virtio-ports/hiveyard.identity', O_RDWR) or die "the port: $!\n";
# A host that comes is told by a signal, so that we need not look often.
$SIG{IO} = sub { };
$SIG{CHLD} = 'IGNORE';
fcntl($port, F_SETOWN, 0 + $$) or die "F_SETOWN: $!\n";
fcntl($port, F_SETFL, O_RDWR | O_ASYNC) or die "O_ASYNC: $!\n";
put('/run/hiveyard/waiting', '');
while (1) {
    my $line = '';
    until ($line =~ /\n/) {
        my $count = sysread $port, $line, 4096, length $line;
        # Nothing is read as long as the host is not there.
        select undef, undef, undef, 0.5 if defined $count && !$count;
    }
    chomp $line;
    eval { become($line) };
    syswrite $port, $@ ? "no: $@" : "yes\n";
}
