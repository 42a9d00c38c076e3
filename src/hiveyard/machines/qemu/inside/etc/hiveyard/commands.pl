# Runs commands for the host, one at a time, before ssh is up: an ssh login takes an emulated guest half a second. This
# program is started before the template is frozen and waits there, with a shell for the first command.
#
# Frames in both directions: a letter, the length of the data (4 bytes, big endian), and the data.
#   from the host   C program and arguments, each ended by NUL; I input (empty: its end); L release the program
#   to the host     S started; O output, E error output (empty: its end); X exit code; A number of input bytes consumed;
#                   N could not be started; R ready for the next command
use strict;
use warnings;
use Fcntl;
use POSIX ();

my ($pidfd, $prlimit, $nproc) = (434, 302, 6);    # on x86_64
my ($uid, $home, $piece, $longest, $patience) = (1000, '/home/agent', 65536, 1 << 21, 40);
my %env = (PATH => '/usr/local/bin:/usr/bin:/bin', HOME => $home, USER => 'agent', LOGNAME => 'agent',
    SHELL => '/bin/bash', LANG => 'C.UTF-8', MAIL => '/var/mail/agent');
if (open my $own, '<', '/etc/hiveyard/environment') {
    while (<$own>) { chomp; $env{$1} = $2 if /^([^=]+)=(.*)/ }
}
# `bash -c SCRIPT hv WORD...` that reads SCRIPT and WORDs from descriptor 3.
my $loader = 'mapfile -d "" -t __w <&3; exec 3<&-; RANDOM=$SRANDOM; __s=$__w; set -- "${__w[@]:1}"; unset __w;'
    . 'eval "unset __s; $__s"';
my ($port, $buffer, $spare) = (undef, '', undef);

# Reads what the host has sent, and returns whether the host is connected. The kernel reports the connection through a
# work queue, so data can arrive first: a host that seems to be absent is checked $retries times more.
sub receive {
    my ($retries) = @_;
    while (1) {
        my $count = sysread $port, $buffer, $piece, length $buffer;
        return 1 if $count || $!{EAGAIN} && !defined $count;
        if (defined $count) {
            return 0 unless $retries--;
            select undef, undef, undef, 0.05;
        }
        elsif (!$!{EINTR}) { die "the port: $!\n" }
    }
}

sub wait_for {
    my ($read, $write) = @_;
    my ($r, $w) = ('', '');
    vec($r, fileno $read, 1) = 1;
    vec($w, fileno $write, 1) = 1 if $write;
    select $r, $w, undef, undef;
    return vec($r, fileno $read, 1);
}

sub send_host {
    my ($kind, $data) = @_;
    my $frame = pack('a N/a', $kind, $data);
    while (length $frame) {
        my $count = syswrite $port, $frame;
        if ($count) { substr $frame, 0, $count, '' }
        elsif ($!{EAGAIN}) { return if wait_for($port, $port) && !receive($patience) }
        elsif (!$!{EINTR}) { return }
    }
}

# Returns the next complete frame.
sub frame {
    return if length $buffer < 5;
    my $size = unpack 'x N', $buffer;
    die "a frame of $size bytes\n" if $size > $longest;
    return if length $buffer < 5 + $size;
    my ($kind, $data) = unpack 'a N/a', $buffer;
    substr $buffer, 0, 5 + $size, '';
    return ($kind, $data);
}

sub limit { syscall($prlimit, $_[0], $nproc, pack('Q Q', $_[1], $_[1]), 0) }

# Starts a program as the guest's user; without words, a shell that waits for them.
sub start {
    my @words = @_;
    my %c;
    pipe(my $in, $c{in}) && pipe($c{out}, my $out) && pipe($c{err}, my $err) && pipe(my $script, $c{words}) or return;
    my $pid = fork;
    return unless defined $pid;
    if (!$pid) {
        POSIX::setsid();
        POSIX::dup2(fileno $in, 0);
        POSIX::dup2(fileno $out, 1);
        POSIX::dup2(fileno $err, 2);
        if (@words) { limit(0, pids()) }
        else {
            fcntl $script, F_SETFD, 0;
            POSIX::dup2(fileno $script, 3);
            @words = ('bash', '-c', $loader, 'hv');
        }
        if (open my $score, '>', '/proc/self/oom_score_adj') { print $score 0; close $score }
        $( = $uid;
        $) = "$uid $uid";
        POSIX::setuid($uid);
        chdir $home;
        %ENV = %env;
        $SIG{PIPE} = 'DEFAULT';
        exec { $words[0] } @words or POSIX::_exit(127);
    }
    delete $c{words} if @words;
    $c{pid} = $pid;
    $c{end} = syscall($pidfd, $pid, 0);
    fcntl $c{in}, F_SETFL, O_WRONLY | O_NONBLOCK;
    return \%c;
}

sub pids {
    open my $file, '<', '/run/hiveyard/pids' or return 1024;
    return 0 + <$file>;
}

sub started {
    my @words = @_;
    my $c = $spare;
    undef $spare;
    return start(@words) unless $c && @words > 3 && "@words[0, 1, 3]" eq 'bash -c hv';
    limit($c->{pid}, pids());
    my $pipe = delete $c->{words};
    print $pipe map { "$_\0" } @words[2, 4 .. $#words];
    close $pipe;
    return $c;
}

# Serves a program until the host releases it or disconnects.
sub serve {
    my ($c) = @_;
    my ($pending, $last) = ('', 0);
    while (1) {
        while (my ($kind, $data) = frame()) {
            if ($kind eq 'L') { return 1 }
            elsif ($kind eq 'C') {    # from another host, which connected while the previous one was checked
                $buffer = pack('a N/a', $kind, $data) . $buffer;
                return 1;
            }
            elsif ($kind ne 'I') { die "$kind in a command\n" }
            elsif (length $data) { $pending .= $data }
            else { $last = 1 }
        }
        my ($r, $w) = ('', '');
        vec($r, fileno $port, 1) = 1;
        vec($r, $c->{end}, 1) = 1 if defined $c->{end};
        for (qw(out err)) { vec($r, fileno $c->{$_}, 1) = 1 if $c->{$_} }
        vec($w, fileno $c->{in}, 1) = 1 if $c->{in} && length $pending;
        close delete $c->{in} if $c->{in} && $last && !length $pending;
        next if select($r, $w, undef, undef) < 0;
        if (vec($r, fileno $port, 1)) { receive($patience) or return 0 }
        for (['out', 'O'], ['err', 'E']) {
            my ($name, $kind) = @$_;
            next unless $c->{$name} && vec($r, fileno $c->{$name}, 1);
            my $data;
            my $count = sysread $c->{$name}, $data, $piece;
            next if !defined $count && $!{EINTR};
            send_host($kind, $data // '');
            close delete $c->{$name} unless $count;
        }
        if (length $pending && !$c->{in}) { send_host('A', pack 'N', length $pending); $pending = '' }
        elsif (length $pending && vec($w, fileno $c->{in}, 1)) {
            my $count = syswrite $c->{in}, $pending;
            if ($count) { send_host('A', pack 'N', $count); substr $pending, 0, $count, '' }
            elsif (!$!{EAGAIN} && !$!{EINTR}) { close delete $c->{in} }
        }
        if (defined $c->{end} && vec($r, $c->{end}, 1)) {
            my $status = waitpid($c->{pid}, 0) == $c->{pid} ? $? : 9;
            POSIX::close(delete $c->{end});
            send_host('X', pack 'N', $status & 127 ? 128 + ($status & 127) : $status >> 8);
        }
    }
}

sub release {
    my ($c) = @_;
    POSIX::close($c->{end}) if defined $c->{end};
    %$c = ();
    1 while waitpid(-1, POSIX::WNOHANG()) > 0;
}

sysopen($port, '/dev/virtio-ports/hiveyard.commands', O_RDWR) or die "the port: $!\n";
# The kernel signals when a host connects, so that no frequent polling is needed.
$SIG{IO} = sub { };
$SIG{PIPE} = 'IGNORE';
fcntl($port, F_SETOWN, 0 + $$) or die "F_SETOWN: $!\n";
fcntl($port, F_SETFL, O_RDWR | O_ASYNC | O_NONBLOCK) or die "O_ASYNC: $!\n";
if (open my $own, '>', '/run/hiveyard/commands.pid') { print $own $$; close $own }
$spare = start();
# Ends the wait of a host for a command of an earlier run of this program.
send_host('R', '');
while (1) {
    if (my ($kind, $data) = frame()) {
        next if $kind eq 'L';
        die "$kind without a command\n" unless $kind eq 'C';
        my $c = started(split /\0/, $data =~ s/\0\z//r, -1);
        if ($c) { send_host('S', ''); serve($c) or $buffer = ''; release($c) }
        else { send_host('N', '') }
        send_host('R', '');
    }
    else {
        wait_for($port);
        next if receive(length $buffer ? $patience : 0);
        $buffer = '';
        select undef, undef, undef, 0.5;
    }
}
