# Passes the kernel's requests for the file system /session to the host, and the host's answers to the kernel. Both
# speak FUSE; this program reads only the length of a message. The host's side is hiveyard.machines.fuse_server.
#
# All state is in the kernel and on the host, so a machine can be frozen and forked while files are open: the host sends
# pause, and no new request is taken from the kernel; then it sends fence after its last answer, and the channel is
# empty.
use strict;
use warnings;
use Fcntl;

my $mount = 165;    # on x86_64
my ($pause, $fence, $go) = (-1001, -1002, -1003);
my ($largest, $piece) = ((128 << 10) + 4096, 65536);

sysopen(my $port, '/dev/virtio-ports/hiveyard.session', O_RDWR | O_NONBLOCK) or die "the port: $!\n";
sysopen(my $fuse, '/dev/fuse', O_RDWR | O_NONBLOCK) or die "fuse: $!\n";
my ($source, $place, $kind) = ('session', '/session', 'fuse');
my $options = 'fd=' . fileno($fuse) . ',rootmode=40755,user_id=0,group_id=0,allow_other,default_permissions';
syscall($mount, $source, $place, $kind, 6, $options) == 0 or die "mounting /session: $!\n";    # nosuid, nodev

my ($paused, $answers, $request) = (0, '', '');

sub send_to_host {
    my $done = 0;
    while ($done < length $_[0]) {
        my $count = syswrite $port, $_[0], length($_[0]) - $done, $done;
        if ($count) { $done += $count }
        elsif ($!{EAGAIN}) {
            my $writable = '';
            vec($writable, fileno $port, 1) = 1;
            select undef, $writable, undef, undef;
        }
        elsif (!$!{EINTR}) { die "the port: $!\n" }
    }
}

sub control { send_to_host(pack 'V V x32', 40, -$_[0]) }

sub take_answers {
    my $count;
    # The port returns one page at a time, and less at the end of the data.
    do { $count = sysread $port, $answers, $piece, length $answers } while $count && $count >= 4096;
    if (defined $count && !$count) {
        die "the host is gone\n" unless $paused;
        select undef, undef, undef, 0.01;    # a machine that wakes may run before its host is connected
    }
    my $at = 0;
    while (length($answers) - $at >= 16) {
        my ($size, $code, $unique) = unpack 'V l< Q<', substr $answers, $at, 16;
        last if length($answers) - $at < $size;
        if ($unique) { syswrite $fuse, $answers, $size, $at }
        elsif ($code == $go) { $paused = 0 }
        else { $paused = 1; control($code) }
        $at += $size;
    }
    substr $answers, 0, $at, '';
}

while (1) {
    my $ready = '';
    vec($ready, fileno $port, 1) = 1;
    vec($ready, fileno $fuse, 1) = 1 unless $paused;
    next if select($ready, undef, undef, undef) < 0;
    take_answers() if vec $ready, fileno $port, 1;
    if (!$paused && vec $ready, fileno $fuse, 1) {
        my $count = sysread $fuse, $request, $largest;
        if ($count) { send_to_host($request) }
        elsif (defined $count || $!{ENODEV}) { die "unmounted\n" }
    }
}
