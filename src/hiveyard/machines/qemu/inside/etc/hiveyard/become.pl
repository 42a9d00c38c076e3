# Makes this guest a machine of its own: sets the identity that the host sends as one line, answers, and waits for the
# next line, which comes when a snapshot of this guest wakes as another machine. It is started before the template is
# frozen and waits there, so that a fork starts no program for this; under emulation each program costs 40 ms. perl-base
# is in every Debian, and can make system calls. It also mounts the disk of the session, which this guest has had since
# its boot but read nothing from, and syncs and freezes it for the host.
use strict;
use warnings;
use Fcntl;

my ($settime, $pidfd, $mount, $syncfs) = (227, 434, 165, 306);    # system calls on x86_64
my ($flush, $freeze, $thaw) = (0x1261, 0xC0045877, 0xC0045878);    # BLKFLSBUF, FIFREEZE, FITHAW
my ($disk, $session) = ('/dev/vdb', '/session');

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

# Checks the file system, as it may be after a crash: the journal is replayed, and what that leaves is repaired.
sub check {
    local $SIG{CHLD} = 'DEFAULT';
    for my $how ('-p', '-fy') {
        my $status = system '/sbin/e2fsck', $how, $disk;
        return unless $status & ~0x300;    # 1 and 2: errors were corrected
    }
    die "the file system of the session's disk is damaged beyond repair\n";
}

sub mount_session {
    my ($how) = @_;
    check() if $how eq 'check';
    # The kernel looked for partitions at boot: what it read then belongs to another disk.
    sysopen(my $device, $disk, O_RDONLY) or die "$disk: $!\n";
    ioctl($device, $flush, 0) or die "$disk: $!\n";
    close $device;
    my ($kind, $options) = ('ext4', 'discard,noinit_itable,commit=2');
    syscall($mount, $disk, $session, $kind, 1030, $options) == 0    # nosuid, nodev, noatime
        or die "mounting $disk: $!\n";
}

sub work {
    my ($what) = @_;
    sysopen(my $files, $session, O_RDONLY | O_DIRECTORY) or die "$session: $!\n";
    if ($what eq 'sync') { syscall($syncfs, fileno $files) == 0 or die "syncfs: $!\n" }
    elsif ($what eq 'freeze') { ioctl($files, $freeze, 0) or $!{EBUSY} or die "FIFREEZE: $!\n" }
    else { ioctl($files, $thaw, 0) or $!{EINVAL} or die "FITHAW: $!\n" }    # EINVAL: it is not frozen
}

sub become {
    my ($time, $name, $id, $again, $pids, $random, $how, $key) = split /\t/, shift;
    return work($time) unless $time =~ /^\d/;
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
    mount_session($how) if $how;
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
